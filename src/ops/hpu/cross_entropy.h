// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fettle::ops::hpu {

/// ops::linear_cross_entropy in operations whose shapes depend on no label: every row is computed, `chunk_rows` at a
/// time, and rows without a target are left out of the sum. Works on any device.
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                                int64_t chunk_rows);

}  // namespace fettle::ops::hpu
