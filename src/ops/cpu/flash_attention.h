// SPDX-License-Identifier: Apache-2.0
/// Causal attention in blocks that stay in a core's cache (Dao, FlashAttention-2, arXiv:2307.08691): one head of one
/// document at a time, plain pointers, no threads. Needs has_brgemm<T>() (brgemm.h). T is float or
/// c10::BFloat16; products and sums are float32.
#pragma once

#include <cstdint>
#include <vector>

namespace fettle::ops::cpu {

/// The rows [length, D] of one head of one document inside a stream [T, H, D].
template <typename T>
struct HeadRows {
  T* data;
  int64_t stride;  ///< elements from one token to the next
};

struct FlashShape {
  int64_t length;    ///< L, of the document
  int64_t head_dim;  ///< D
  int64_t window;    ///< keys that a query sees, itself included; 0: all before it
  float scale;
};

/// Queries of a block, and keys of one: its buffers stay in the second-level cache.
constexpr int64_t kFlashBlock = 128;

/// Keys and values of one head of one document in the layouts that the products read. `keys` and `values` each take
/// packed_elements(shape) elements.
template <typename T>
struct PackedKeys {
  T* keys;
  T* values;
};
int64_t packed_elements(const FlashShape& shape);
template <typename T>
void pack_keys(HeadRows<const T> key, HeadRows<const T> value, const FlashShape& shape, PackedKeys<T> packed);

/// Buffers of a thread, kept from one call to the next.
template <typename T>
struct FlashWorkspace {
  std::vector<T> elements;
  std::vector<float> sums;
};

/// One query head of a document.
template <typename T>
struct FlashHead {
  HeadRows<const T> query;
  PackedKeys<const T> packed;
  HeadRows<T> output;
  float* log_sums;  ///< written: log2 Σ exp(scale · score) of each query
};
/// Writes what belongs to block `block` of kFlashBlock queries.
template <typename T>
void flash_forward(const FlashHead<T>& head, const FlashShape& shape, int64_t block, FlashWorkspace<T>& workspace);

/// The gradients of one query head. d_key and d_value [L, D] are those of this query head alone, in float32.
template <typename T>
struct FlashGradient {
  HeadRows<const T> query;
  HeadRows<const T> key;
  HeadRows<const T> value;
  HeadRows<const T> output;
  HeadRows<const T> d_output;
  const float* log_sums;
  HeadRows<T> d_query;
  float* d_key;
  float* d_value;
};
template <typename T>
void flash_backward(const FlashGradient<T>& arrays, const FlashShape& shape, FlashWorkspace<T>& workspace);

}  // namespace fettle::ops::cpu
