// SPDX-License-Identifier: Apache-2.0
/// Rotary frequencies and the cos/sin tables of a batch, as transformers' modeling_rope_utils computes them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/spec.h"

namespace fettle::model {

struct RopeFrequencies {
  at::Tensor inverse;              ///< float32 [rotary_dim/2]
  double attention_scaling = 1.0;  ///< cos and sin are multiplied by it
};

/// Frequencies for a document of `length` tokens; only the dynamic kind looks at the length.
RopeFrequencies rope_frequencies(const RopeSpec& rope, int64_t length);

/// cos and sin of every token, [T, rotary_dim/2] each; a head's two halves share them.
struct RopeTable {
  at::Tensor cos;
  at::Tensor sin;
};

/// What a table is computed for, and on.
struct RopeTarget {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

/// Computed in float32, then cast as transformers does. `positions` int64 [T] on the host; each document's length is
/// its last position + 1, so the continuation of a cached document counts its past.
RopeTable rope_table(const RopeSpec& rope, const at::Tensor& positions, const std::vector<int32_t>& cu_seqlens,
                     const RopeTarget& target);

}  // namespace fettle::model
