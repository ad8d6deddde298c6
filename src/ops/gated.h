// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace fettle::ops {

/// silu(gate) · up, element by element; any shape, float32, bfloat16 or float64.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);
/// gelu(gate) · up with the tanh approximation (transformers' gelu_pytorch_tanh).
at::Tensor geglu_tanh(const at::Tensor& gate, const at::Tensor& up);

namespace composite {
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);
}

}  // namespace fettle::ops
