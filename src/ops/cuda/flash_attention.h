// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "ops/attention.h"

namespace fettle::ops::cuda {

/// Whether torch's flash attention takes such a query: bfloat16 on a GPU, at least one token, heads of at most 256
/// elements in steps of 8; and fused operations are on.
bool has_flash_attention(const at::Tensor& query);

/// ops::attention by it.
at::Tensor flash_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionSpec& spec, const std::vector<int32_t>& cu_seqlens);

}  // namespace fettle::ops::cuda
