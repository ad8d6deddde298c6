// SPDX-License-Identifier: Apache-2.0
#include "quantize/awq.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <limits>

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
                          int64_t grid_size) {
  const at::Tensor hessian = inputs.hessian();
  const at::Tensor magnitudes = inputs.magnitudes().clamp_min(1e-8);
  const at::Tensor sizes = relative_sizes(weight, scheme.group_of(weight.size(1))).clamp_min(1e-8);
  at::Tensor best = at::ones({weight.size(1)}, weight.options());
  double least = error_with(weight, best, hessian, scheme);
  const auto try_factors = [&](const at::Tensor& factors) {
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

Ranges search_ranges(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme) {
  constexpr int kSteps = 20;  // AutoAWQ's: ten of twenty, down to half
  const int64_t group = scheme.group_of(weight.size(1));
  const int64_t groups = weight.size(1) / group;
  const at::Tensor parts = weight.view({weight.size(0), groups, group});
  std::vector<at::Tensor> blocks;
  for (int64_t i = 0; i < groups; ++i)
    blocks.push_back(hessian.narrow(0, i * group, group).narrow(1, i * group, group));
  const at::Tensor diagonal_blocks = at::stack(blocks);  // [G, g, g]
  const at::Tensor lowest = parts.amin(-1).clamp_max_(0);
  const at::Tensor highest = parts.amax(-1).clamp_min_(0);
  at::Tensor least = at::full(lowest.sizes(), std::numeric_limits<float>::infinity(), weight.options());
  Ranges best;
  for (int step = 0; step <= kSteps / 2; ++step) {
    const double part = 1.0 - static_cast<double>(step) / kSteps;
    const Ranges ranges = ranges_of(lowest * part, highest * part, scheme);
    const at::Tensor change =
        (round_to(weight, ranges, scheme).values() - weight).view(parts.sizes()).transpose(0, 1);  // [G, O, g]
    const at::Tensor error = (at::bmm(change, diagonal_blocks) * change).sum(-1).transpose(0, 1);  // [O, G]
    const at::Tensor better = error < least;
    least = at::where(better, error, least);
    best.scales = step == 0 ? ranges.scales : at::where(better, ranges.scales, best.scales);
    best.zeros = step == 0 ? ranges.zeros : at::where(better, ranges.zeros, best.zeros);
  }
  return best;
}

}  // namespace fettle::quantize
