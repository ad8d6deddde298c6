// SPDX-License-Identifier: Apache-2.0
/// GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one after the other, and the error of each is made
/// up for in those that follow, by the inverse of the Hessian.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "quantize/rounding.h"

namespace fettle::quantize {

struct GptqOptions {
  bool act_order = true;       ///< columns with the largest inputs first
  bool static_groups = true;   ///< ranges are found before, and are of neighbouring columns whatever the order
  bool clip = true;            ///< of ranges that are found before: search_ranges
  double damp_percent = 0.01;  ///< of the mean of the Hessian's diagonal, added to it
  int64_t block_size = 128;    ///< columns whose error is passed on to the rest at once; changes the speed alone
};

/// `weight` float32 [O, C], `hessian` float32 [C, C] (InputStatistics). A column whose input was always 0 becomes 0.
/// With act_order and without static_groups the result states the group of each input. Where the damped Hessian cannot
/// be inverted, more is added, and a warning says so. Throws Error{kDiverged} where nothing helps: the inputs were not
/// finite.
RoundedWeight gptq(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme,
                   const GptqOptions& options);

namespace composite {
/// Column by column in plain torch operations, on any device.
RoundedWeight gptq(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme,
                   const GptqOptions& options);
}  // namespace composite

}  // namespace fettle::quantize
