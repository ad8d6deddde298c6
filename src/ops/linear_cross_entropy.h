// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fettle::ops {

inline constexpr int64_t kIgnore = -100;

/// Sum over the targets of -log softmax(hidden · weightᵀ)[label]: float32 scalar. hidden: [T, C]; weight: [V, C] of
/// the same type; labels: int64 [T], kIgnore or in [0, V). Logits are rounded to hidden's type and the softmax taken in
/// float32, as transformers does, but only rows with a target are computed, `chunk_rows` at a time (0:
/// cross_entropy_chunk_rows); on an accelerator all rows are, because counting those with a target would wait for the
/// device, and labels are not checked. The gradients are computed in the forward, so nothing of size V is kept for the
/// backward except weight's gradient where that is asked for.
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                                int64_t chunk_rows = 0);

/// Rows of a chunk whose logits take so many bytes a row.
int64_t cross_entropy_chunk_rows(int64_t row_bytes, c10::DeviceType device = c10::DeviceType::CPU);

namespace composite {
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels);
}

}  // namespace fettle::ops
