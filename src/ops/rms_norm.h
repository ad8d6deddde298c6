// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace fettle::ops {

/// Root-mean-square norm of the last dimension: weight · cast(x · rsqrt(mean(x²) + eps)); normalised in float32, cast
/// to x's type, then multiplied (transformers' LlamaRMSNorm). x: [..., C] float32, bfloat16 or float64; weight: [C] of
/// the same type. Saves x and one float32 a row for the backward.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

namespace composite {
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
}

}  // namespace fettle::ops
