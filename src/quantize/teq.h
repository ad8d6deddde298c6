// SPDX-License-Identifier: Apache-2.0
/// TEQ (Cheng et al. 2023, arXiv 2310.10944): the factors of columns before rounding are trained.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "quantize/input_statistics.h"
#include "quantize/rounding.h"

namespace fettle::quantize {

struct TeqOptions {
  int64_t steps = 50;
  double learning_rate = 1e-2;
};

/// Factors [C], float32, for the columns of `weight` float32 [O, C] (all layers that share the input), trained with
/// Adam (betas 0.9, rate falling to 0) from 1 on, by the straight-through estimator. What is minimised is the error of
/// these layers' output, and not the loss of the whole model as in the paper: so a layer at a time is in memory. Of all
/// steps the best factors; 1 if none is better. They are tied.
at::Tensor train_factors(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme,
                         const TeqOptions& options, const Tie& tie);

}  // namespace fettle::quantize
