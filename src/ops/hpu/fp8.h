// SPDX-License-Identifier: Apache-2.0
/// Products in float8 by the Gaudi bridge.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/quantized_weight.h"

namespace fettle::ops::hpu {

/// Whether x is on a card whose bridge computes in float8, and fused operations are on.
bool has_fp8(const at::Tensor& x);

/// A tensor in float8_e4m3fn: values · scale.
struct Fp8 {
  at::Tensor values;
  at::Tensor scale;  ///< float32 [1]
};

/// x rounded to float8, so that its largest element becomes the largest there is.
Fp8 to_fp8(const at::Tensor& x);

/// x·weightᵀ in `type`: x [T, C], weight [O, C] of WeightFormat::kFp8. The terms are products of 8-bit numbers, added
/// in float32.
at::Tensor fp8_linear(const Fp8& x, const QuantizedWeight& weight, at::ScalarType type);

/// ops::dequantize of such a weight.
at::Tensor fp8_dense(const QuantizedWeight& weight, at::ScalarType type);

}  // namespace fettle::ops::hpu
