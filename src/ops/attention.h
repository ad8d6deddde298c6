// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace fettle::ops {

/// Gradients of keys and values, each query head's by itself in float32, are held for so many bytes of heads at once,
/// or one head a thread.
inline constexpr double kAttentionPartBytes = 64 << 20;

struct AttentionSpec {
  double scale = 1.0;
  int64_t window = 0;  ///< keys that a query sees, itself included; 0: all before it
};

/// Causal attention inside each document of a stream. query: [T, H, D]; key, value: [T, K, D] with H a multiple of K
/// (query head h reads key head h / (H/K)); cu_seqlens: [n+1] document boundaries 0 … T. Returns [T, H, D]. Work and
/// memory grow with the documents' own lengths (and the window), never with T².
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionSpec& spec,
                     const std::vector<int32_t>& cu_seqlens);

/// The same for the last T tokens of one document of S ≥ T tokens: query [T, H, D]; key, value [S, K, D]. Inference
/// only.
at::Tensor attention_with_past(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                               const AttentionSpec& spec);

/// The same for the last token of each of n documents together: query [n, H, D]; key, value [n, K, S, D], of which
/// document i has lengths[i] ≤ S tokens, the query's own included. Returns [n, H, D]. Inference only.
at::Tensor attention_of_last(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                             const AttentionSpec& spec, const std::vector<int64_t>& lengths);

namespace composite {
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionSpec& spec,
                     const std::vector<int32_t>& cu_seqlens);
}

}  // namespace fettle::ops
