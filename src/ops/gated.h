// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace fettle::ops {

/// silu(gate) · up, element by element: equal shapes, float32, bfloat16 or float64. Saves gate and up only.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

namespace composite {
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);
}

}  // namespace fettle::ops
