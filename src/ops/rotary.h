// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace fettle::ops {

/// Rotates the first 2·R elements of every head by the token's angles; element i pairs with i+R (the half-split order
/// of Hugging Face checkpoints), the rest stays. x: [T, H, D]; cos, sin: [T, R], of x's type.
at::Tensor apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

namespace composite {
at::Tensor apply_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);
}

}  // namespace fettle::ops
