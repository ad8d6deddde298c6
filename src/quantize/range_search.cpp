// SPDX-License-Identifier: Apache-2.0
#include "quantize/range_search.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>

#include <limits>
#include <vector>

namespace fettle::quantize {

Ranges search_ranges(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme) {
  constexpr int kSteps = 20;  // ten of twenty, down to half: AutoAWQ's
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
  return {best.scales.contiguous(), best.zeros.contiguous()};
}

}  // namespace fettle::quantize
