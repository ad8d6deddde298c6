// SPDX-License-Identifier: Apache-2.0
#include "ops/gated.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/silu.h>
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
    with_element_type(gate, [&]<typename T>(T) {
      const T* g = gate.const_data_ptr<T>();
      const T* u = up.const_data_ptr<T>();
      T* output = y.mutable_data_ptr<T>();
      parallel_rows(gate.numel(), 1, [&](int64_t begin, int64_t end) {
        cpu::swiglu(g + begin, u + begin, output + begin, end - begin);
      });
    });
    context->save_for_backward({gate, up});
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor dy = gradients[0].contiguous();
    at::Tensor d_gate = at::empty_like(dy);
    at::Tensor d_up = at::empty_like(dy);
    with_element_type(dy, [&]<typename T>(T) {
      const cpu::SwigluGradient<T> all{dy.const_data_ptr<T>(), saved[0].const_data_ptr<T>(),
                                       saved[1].const_data_ptr<T>(), d_gate.mutable_data_ptr<T>(),
                                       d_up.mutable_data_ptr<T>()};
      parallel_rows(dy.numel(), 1, [&](int64_t begin, int64_t end) {
        cpu::swiglu_backward({all.dy + begin, all.gate + begin, all.up + begin, all.d_gate + begin, all.d_up + begin},
                             end - begin);
      });
    });
    return {d_gate, d_up};
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  TORCH_CHECK(gate.sizes() == up.sizes() && gate.scalar_type() == up.scalar_type(), "swiglu: gate ", gate.sizes(),
              " and up ", up.sizes(), " of one type");
  if (!has_cpu_kernel(gate)) {
    return composite::swiglu(gate, up);
  }
  return Swiglu::apply(gate.contiguous(), up.contiguous());
}

at::Tensor composite::swiglu(const at::Tensor& gate, const at::Tensor& up) {
  return at::silu(gate) * up;
}

}  // namespace fettle::ops
