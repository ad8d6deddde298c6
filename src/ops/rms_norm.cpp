// SPDX-License-Identifier: Apache-2.0
#include "ops/rms_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/cpu/kernels.h"
#include "ops/dispatch.h"
#include "ops/hpu/kernels.h"

namespace fettle::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

cpu::RmsNormRows size_of(const at::Tensor& x, double eps) {
  return {.rows = x.numel() / x.size(-1), .columns = x.size(-1), .eps = static_cast<float>(eps)};
}

struct Results {
  at::Tensor y;
  at::Tensor inverse_rms;
};
void compute(const at::Tensor& x, const at::Tensor& weight, cpu::RmsNormRows size, const Results& to) {
  if (x.is_cuda()) {
    launch(&cuda::KernelTable::rms_norm, x,
           {.type = kernel_type(x),
            .rows = size.rows,
            .columns = size.columns,
            .eps = size.eps,
            .x = x.const_data_ptr(),
            .weight = weight.const_data_ptr(),
            .y = to.y.mutable_data_ptr(),
            .inverse_rms = to.inverse_rms.mutable_data_ptr<float>()});
    return;
  }
  with_element_type(x, [&]<typename T>(T) {
    const T* input = x.const_data_ptr<T>();
    T* output = to.y.mutable_data_ptr<T>();
    const T* scale = weight.const_data_ptr<T>();
    float* inverse = to.inverse_rms.mutable_data_ptr<float>();
    parallel_rows(size.rows, size.columns, [&](int64_t begin, int64_t end) {
      cpu::rms_norm(input + begin * size.columns, scale, output + begin * size.columns, inverse + begin,
                    {end - begin, size.columns, size.eps});
    });
  });
}

// What the backward reads: x, weight and inverse_rms as saved by the forward.
struct Inputs {
  const at::Tensor& dy;
  const variable_list& saved;
};
struct NormGradients {
  at::Tensor x;
  at::Tensor weight;  // undefined: not wanted
};

// The rows' share of the weight's gradient is summed in pieces whose number does not depend on the threads, so that the
// result does not either.
constexpr int64_t kPieces = 64;

NormGradients cpu_backward(const Inputs& inputs, cpu::RmsNormRows size, bool weight_is_trained) {
  const auto& [dy, saved] = inputs;
  const at::Tensor dx = at::empty_like(dy);
  const at::Tensor partial = at::zeros({weight_is_trained ? kPieces : 0, size.columns}, dy.options().dtype(at::kFloat));
  const int64_t piece = (size.rows + kPieces - 1) / kPieces;
  with_element_type(dy, [&]<typename T>(T) {
    const cpu::RmsNormGradient<T> all{inputs.dy.const_data_ptr<T>(),
                                      inputs.saved[0].const_data_ptr<T>(),
                                      inputs.saved[1].const_data_ptr<T>(),
                                      inputs.saved[2].const_data_ptr<float>(),
                                      dx.mutable_data_ptr<T>(),
                                      partial.mutable_data_ptr<float>()};
    at::parallel_for(0, kPieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = std::min(i * piece, size.rows);
        const int64_t offset = row * size.columns;
        cpu::rms_norm_backward({all.dy + offset, all.x + offset, all.weight, all.inverse_rms + row, all.dx + offset,
                                weight_is_trained ? all.d_weight + i * size.columns : nullptr},
                               {std::min(piece, size.rows - row), size.columns, size.eps});
      }
    });
  });
  return {dx, weight_is_trained ? partial.sum(0).to(dy.scalar_type()) : at::Tensor()};
}

NormGradients cuda_backward(const Inputs& inputs, cpu::RmsNormRows size, bool weight_is_trained) {
  const auto& [dy, saved] = inputs;
  NormGradients to{at::empty_like(dy), {}};
  at::Tensor partial;
  if (weight_is_trained) {
    to.weight = at::empty_like(saved[1]);
    partial = at::empty({cuda::weight_gradient_pieces(size.rows, size.columns), size.columns},
                        dy.options().dtype(at::kFloat));
  }
  launch(&cuda::KernelTable::rms_norm_backward, dy,
         {.type = kernel_type(dy),
          .rows = size.rows,
          .columns = size.columns,
          .dy = dy.const_data_ptr(),
          .x = saved[0].const_data_ptr(),
          .weight = saved[1].const_data_ptr(),
          .inverse_rms = saved[2].const_data_ptr<float>(),
          .dx = to.x.mutable_data_ptr(),
          .partial = weight_is_trained ? partial.mutable_data_ptr<float>() : nullptr,
          .d_weight = weight_is_trained ? to.weight.mutable_data_ptr() : nullptr});
  return to;
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight, double eps) {
    const auto size = size_of(x, eps);
    const Results to{at::empty_like(x), at::empty({size.rows}, x.options().dtype(at::kFloat))};
    compute(x, weight, size, to);
    context->save_for_backward({x, weight, to.inverse_rms});
    context->saved_data["eps"] = eps;
    return to.y;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor dy = gradients[0].contiguous();
    const auto size = size_of(saved[0], context->saved_data["eps"].toDouble());
    const bool weight_is_trained = context->needs_input_grad(1);
    const Inputs inputs{dy, saved};
    const NormGradients to =
        dy.is_cuda() ? cuda_backward(inputs, size, weight_is_trained) : cpu_backward(inputs, size, weight_is_trained);
    return {to.x, to.weight, at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  RECORD_FUNCTION("fettle::rms_norm", c10::ArrayRef<const c10::IValue>());
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 1 && weight.size(0) == x.size(-1) && weight.size(0) > 0 &&
                  weight.scalar_type() == x.scalar_type(),
              "rms_norm: x ", x.sizes(), " and weight ", weight.sizes(), " of one type");
  if (hpu::has_rms_norm(x)) return hpu::rms_norm(x.contiguous(), weight, eps);
  if (!has_kernel(x)) {
    return composite::rms_norm(x, weight, eps);
  }
  return RmsNorm::apply(x.contiguous(), weight.contiguous(), eps);
}

at::Tensor composite::rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  const at::Tensor variance = wide.pow(2).mean(-1, /*keepdim=*/true);
  return weight * (wide * at::rsqrt(variance + eps)).to(x.scalar_type());
}

}  // namespace fettle::ops
