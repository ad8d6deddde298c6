// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace fettle::ops {

/// sums += X^T·X. X float32 or bfloat16 [T, C], sums float32 [C, C], contiguous. Products of bfloat16 are exact, their
/// sums float32's, whatever computes them: on processors with bfloat16 instructions those do, in a quarter of the time.
void add_gram(const at::Tensor& sums, const at::Tensor& x);

}  // namespace fettle::ops
