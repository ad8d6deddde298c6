// SPDX-License-Identifier: Apache-2.0
#include "ops/gated.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/silu.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/cpu/kernels.h"
#include "ops/dispatch.h"

namespace fettle::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class Swiglu : public torch::autograd::Function<Swiglu> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate, const at::Tensor& up) {
    at::Tensor y = at::empty_like(gate);
    compute(gate, up, y);
    context->save_for_backward({gate, up});
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor dy = gradients[0].contiguous();
    const Gradients to{at::empty_like(dy), at::empty_like(dy)};
    compute_backward(dy, saved, to);
    return {to.gate, to.up};
  }

 private:
  struct Gradients {
    at::Tensor gate;
    at::Tensor up;
  };

  static void compute(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& y) {
    if (gate.is_cuda()) {
      launch(&cuda::KernelTable::swiglu, gate,
             {kernel_type(gate), gate.numel(), gate.const_data_ptr(), up.const_data_ptr(), y.mutable_data_ptr()});
      return;
    }
    with_element_type(gate, [&]<typename T>(T) {
      const T* g = gate.const_data_ptr<T>();
      const T* u = up.const_data_ptr<T>();
      T* output = y.mutable_data_ptr<T>();
      parallel_rows(gate.numel(), 1, [&](int64_t begin, int64_t end) {
        cpu::swiglu(g + begin, u + begin, output + begin, end - begin);
      });
    });
  }

  static void compute_backward(const at::Tensor& dy, const variable_list& saved, const Gradients& to) {
    const at::Tensor& gate = saved[0];
    const at::Tensor& up = saved[1];
    if (dy.is_cuda()) {
      launch(&cuda::KernelTable::swiglu_backward, dy,
             {kernel_type(dy), dy.numel(), dy.const_data_ptr(), gate.const_data_ptr(), up.const_data_ptr(),
              to.gate.mutable_data_ptr(), to.up.mutable_data_ptr()});
      return;
    }
    with_element_type(dy, [&]<typename T>(T) {
      const cpu::SwigluGradient<T> all{dy.const_data_ptr<T>(), gate.const_data_ptr<T>(), up.const_data_ptr<T>(),
                                       to.gate.mutable_data_ptr<T>(), to.up.mutable_data_ptr<T>()};
      parallel_rows(dy.numel(), 1, [&](int64_t begin, int64_t end) {
        cpu::swiglu_backward({all.dy + begin, all.gate + begin, all.up + begin, all.d_gate + begin, all.d_up + begin},
                             end - begin);
      });
    });
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  RECORD_FUNCTION("fettle::swiglu", c10::ArrayRef<const c10::IValue>());
  TORCH_CHECK(gate.sizes() == up.sizes() && gate.scalar_type() == up.scalar_type(), "swiglu: gate ", gate.sizes(),
              " and up ", up.sizes(), " of one type");
  if (!has_kernel(gate)) {
    return composite::swiglu(gate, up);
  }
  return Swiglu::apply(gate.contiguous(), up.contiguous());
}

at::Tensor composite::swiglu(const at::Tensor& gate, const at::Tensor& up) {
  return at::silu(gate) * up;
}

}  // namespace fettle::ops
