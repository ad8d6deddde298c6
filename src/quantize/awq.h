// SPDX-License-Identifier: Apache-2.0
/// AWQ (Lin et al. 2023, arXiv 2306.00978): inputs that matter are made larger before rounding and their weights'
/// counterpart smaller.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "quantize/input_statistics.h"
#include "quantize/rounding.h"

namespace fettle::quantize {

/// Factors [C], float32, for the columns of `weight` float32 [O, C] (all layers that share the input), after which
/// rounding and dividing by them changes the output least: m^r, or m^r / w^(1-r), of the inputs' mean size m and the
/// weights' w, for `grid_size` exponents r in [0, 1), tied; 1 where nothing is better than no factor.
at::Tensor search_factors(const at::Tensor& weight, const InputStatistics& inputs, const Scheme& scheme,
                          int64_t grid_size, const Tie& tie);

}  // namespace fettle::quantize
