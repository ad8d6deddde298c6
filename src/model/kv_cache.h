// SPDX-License-Identifier: Apache-2.0
/// Keys and values of the tokens generated so far, for one document.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "model/spec.h"

namespace fettle::model {

class KvCache {
 public:
  /// Room for `capacity` tokens: 2·layers·capacity·kv_heads·head_dim elements.
  KvCache(const DecoderSpec& spec, int64_t capacity, at::TensorOptions options);

  /// What one of that capacity takes; a double, which no capacity overflows.
  static double bytes(const DecoderSpec& spec, int64_t capacity, at::ScalarType dtype);

  /// Tokens stored in every layer.
  [[nodiscard]] int64_t length() const { return length_; }
  [[nodiscard]] int64_t capacity() const { return capacity_; }

  /// Puts the keys and values [T, K, D] of the next T tokens of `layer` after those stored and returns all
  /// [length()+T, K, D] of that layer (views). Throws c10::Error past the capacity.
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const at::Tensor& key, const at::Tensor& value);
  /// Makes the last append of every layer count.
  void advance(int64_t tokens) { length_ += tokens; }

 private:
  int64_t capacity_;
  int64_t length_ = 0;
  std::vector<at::Tensor> keys_;    // [layers] of [capacity, K, D]
  std::vector<at::Tensor> values_;  // [layers] of [capacity, K, D]
};

}  // namespace fettle::model
