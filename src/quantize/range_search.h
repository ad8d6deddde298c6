// SPDX-License-Identifier: Apache-2.0
/// Ranges that leave out a group's largest weights, where the finer steps for all others are worth more (AWQ's
/// clipping: Lin et al. 2023, arXiv 2306.00978).
#pragma once

#include <ATen/core/Tensor.h>

#include "quantize/rounding.h"

namespace fettle::quantize {

/// The ranges of each group of `weight` float32 [O, C] that change the output least when it is rounded to them: from
/// the smallest to the largest weight, or a part of that, down to half. `hessian` [C, C] of the inputs as `weight` is
/// given them; of it the blocks on the diagonal count, a group each.
Ranges search_ranges(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme);

}  // namespace fettle::quantize
