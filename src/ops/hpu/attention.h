// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace fettle::ops::hpu {

/// Heads of rows, by the key head that they read: B rows of L tokens, K key heads, G query heads a key head, D
/// elements.
struct AttentionInputs {
  at::Tensor query;  ///< [B, K, G, L, D]
  at::Tensor key;    ///< [B, K, 1, L, D]
  at::Tensor value;  ///< [B, K, 1, L, D]
  at::Tensor mask;   ///< [B or 1, 1, L, L], added to the scores, of the query's type; undefined: causal
  double scale;
};

/// Whether x is on a card whose bridge has the fused attention, and fused operations are on.
bool has_attention(const at::Tensor& x);

/// softmax(query·keyᵀ·scale)·value by the bridge's flash attention, which keeps no scores: [B, K, G, L, D].
at::Tensor attention(const AttentionInputs& inputs);

}  // namespace fettle::ops::hpu
