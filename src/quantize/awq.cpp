// SPDX-License-Identifier: Apache-2.0
#include "quantize/awq.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>

#include <cmath>

namespace fettle::quantize {
namespace {

/// Around 1, and no column vanishes.
at::Tensor balanced(const at::Tensor& factors) {
  const at::Tensor positive = factors.clamp_min(1e-4);
  return positive / (positive.max() * positive.min()).sqrt();
}

/// Mean of |w| / max|w of its group| over the rows: how large a column's weights are where they are rounded.
at::Tensor relative_sizes(const at::Tensor& weight, int64_t group) {
  const at::Tensor groups = weight.abs().view({weight.size(0), -1, group});
  return (groups / groups.amax(-1, /*keepdim=*/true).clamp_min(1e-12)).view(weight.sizes()).mean(0);
}

double error_with(const at::Tensor& weight, const at::Tensor& factors, const at::Tensor& hessian,
                  const Scheme& scheme) {
  return output_error(rtn(weight * factors, scheme).values() / factors - weight, hessian);
}

}  // namespace

at::Tensor search_factors(const at::Tensor& weight, const InputStatistics& inputs, const Scheme& scheme,
                          int64_t grid_size, const Tie& tie) {
  const at::Tensor& hessian = inputs.hessian;
  const at::Tensor magnitudes = inputs.magnitudes.clamp_min(1e-8);
  const at::Tensor sizes = relative_sizes(weight, scheme.group_of(weight.size(1))).clamp_min(1e-8);
  at::Tensor best = at::ones({weight.size(1)}, weight.options());
  double least = error_with(weight, best, hessian, scheme);
  const auto try_factors = [&](const at::Tensor& untied) {
    const at::Tensor factors = tie(untied.log()).exp();
    const double error = error_with(weight, factors, hessian, scheme);
    if (!(error < least)) return;
    least = error;
    best = factors;
  };
  for (int64_t i = 0; i < grid_size; ++i) {
    const double ratio = static_cast<double>(i) / static_cast<double>(grid_size);
    if (i > 0) try_factors(balanced(magnitudes.pow(ratio)));
    try_factors(balanced(magnitudes.pow(ratio) / sizes.pow(1 - ratio)));
  }
  return best;
}

}  // namespace fettle::quantize
