// SPDX-License-Identifier: Apache-2.0
#include "ops/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/cpu/kernels.h"
#include "ops/dispatch.h"
#include "ops/hpu/kernels.h"

namespace fettle::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, float sign) {
  at::Tensor y = at::empty_like(x);
  const int64_t row = x.size(1) * x.size(2);
  const int64_t half = cos.size(1);
  if (x.is_cuda()) {
    launch(&cuda::KernelTable::rotary, x,
           {.type = kernel_type(x),
            .tokens = x.size(0),
            .heads = x.size(1),
            .head_dim = x.size(2),
            .half = half,
            .sign = sign,
            .x = x.const_data_ptr(),
            .cos = cos.const_data_ptr(),
            .sin = sin.const_data_ptr(),
            .y = y.mutable_data_ptr()});
    return y;
  }
  with_element_type(x, [&]<typename T>(T) {
    const T* input = x.const_data_ptr<T>();
    T* output = y.mutable_data_ptr<T>();
    const T* cosines = cos.const_data_ptr<T>();
    const T* sines = sin.const_data_ptr<T>();
    parallel_rows(x.size(0), row, [&](int64_t begin, int64_t end) {
      cpu::rotary(input + begin * row, cosines + begin * half, sines + begin * half, output + begin * row,
                  {end - begin, x.size(1), x.size(2), half, sign});
    });
  });
  return y;
}

// A rotation's gradient is the rotation back.
class Rotary : public torch::autograd::Function<Rotary> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    context->save_for_backward({cos, sin});
    return rotate(x, cos, sin, 1.0f);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    return {rotate(gradients[0].contiguous(), saved[0], saved[1], -1.0f), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  RECORD_FUNCTION("fettle::rotary", c10::ArrayRef<const c10::IValue>());
  TORCH_CHECK(x.dim() == 3 && cos.dim() == 2 && cos.sizes() == sin.sizes() && cos.size(0) == x.size(0) &&
                  2 * cos.size(1) <= x.size(2) && cos.scalar_type() == x.scalar_type() &&
                  sin.scalar_type() == x.scalar_type(),
              "apply_rotary: x ", x.sizes(), ", cos ", cos.sizes(), ", sin ", sin.sizes(), " of one type");
  if (2 * cos.size(1) == x.size(2) && hpu::has_rotary(x)) return hpu::rotary(x.contiguous(), cos, sin);
  if (!has_kernel(x)) {
    return composite::apply_rotary(x, cos, sin);
  }
  return Rotary::apply(x.contiguous(), cos.contiguous(), sin.contiguous());
}

at::Tensor composite::apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = cos.size(1);
  const at::Tensor first = x.narrow(2, 0, half);
  const at::Tensor second = x.narrow(2, half, half);
  const at::Tensor c = cos.unsqueeze(1);
  const at::Tensor s = sin.unsqueeze(1);
  return at::cat({first * c - second * s, second * c + first * s, x.narrow(2, 2 * half, x.size(2) - 2 * half)}, 2);
}

}  // namespace fettle::ops
