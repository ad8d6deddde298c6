// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "ops/weight.h"

namespace fettle::ops {

/// One frozen linear layer and the low-rank matrices beside it, all of the input's type or quantized.
struct LoraProjection {
  Weight weight;    ///< [O, C]
  at::Tensor bias;  ///< [O], or undefined
  at::Tensor a;     ///< [r, C], or undefined: no LoRA here
  at::Tensor b;     ///< [O, r]
};

struct LoraOptions {
  double scaling = 1.0;
  double dropout = 0.0;  ///< probability; 0 when not training. One mask a projection, drawn from the default generator
};

/// y = x·Wᵀ + bias + scaling · (dropout(x)·Aᵀ)·Bᵀ for every projection of the same input x: [T, C] → [T, O] each
/// (PEFT's lora.Linear). Gradients flow to x, a and b; weight and bias are constants. x is saved once for all
/// projections. A quantized weight is expanded for each product, so one of them at a time is there in full; a
/// grouped one is in the forward what grouped_linear makes of it, whether gradients are wanted or not.
std::vector<at::Tensor> lora_linear(const at::Tensor& x, const std::vector<LoraProjection>& projections,
                                    const LoraOptions& options);

namespace composite {
std::vector<at::Tensor> lora_linear(const at::Tensor& x, const std::vector<LoraProjection>& projections,
                                    const LoraOptions& options);
}

}  // namespace fettle::ops
