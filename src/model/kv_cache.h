// SPDX-License-Identifier: Apache-2.0
/// Keys and values of the tokens generated so far, for one document or for several that are continued together.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/spec.h"

namespace fettle::model {

class KvCache {
 public:
  /// Room for `capacity` tokens of each of `documents`: 2·layers·documents·capacity·kv_heads·head_dim elements.
  KvCache(const DecoderSpec& spec, int64_t capacity, at::TensorOptions options, int64_t documents = 1);

  /// What one document of that capacity takes; a double, which no capacity overflows.
  static double bytes(const DecoderSpec& spec, int64_t capacity, at::ScalarType dtype);

  [[nodiscard]] int64_t documents() const { return static_cast<int64_t>(lengths_.size()); }
  /// Tokens of a document that are stored in every layer.
  [[nodiscard]] int64_t length(int64_t document = 0) const { return lengths_[static_cast<size_t>(document)]; }
  [[nodiscard]] int64_t capacity() const { return capacity_; }
  [[nodiscard]] bool is_empty() const;

  /// Puts the keys and values [T, K, D] of the next tokens of `layer` after those stored; cu_seqlens [documents+1] says
  /// which are whose. Throws c10::Error past the capacity.
  void append(int64_t layer, const at::Tensor& key, const at::Tensor& value, const std::vector<int32_t>& cu_seqlens);
  /// Makes the last append of every layer count.
  void advance(const std::vector<int32_t>& cu_seqlens);

  /// All documents' keys or values [documents, K, capacity, D] of a layer (views). What lies past a document's tokens
  /// is finite, if there are several, and else not defined.
  [[nodiscard]] at::Tensor keys(int64_t layer) const {
    return keys_[static_cast<size_t>(layer)].narrow(0, 0, documents());
  }
  [[nodiscard]] at::Tensor values(int64_t layer) const {
    return values_[static_cast<size_t>(layer)].narrow(0, 0, documents());
  }

  /// Forgets the tokens of a document from `length` on.
  void truncate(int64_t document, int64_t length);
  /// Forgets all documents but these, which are numbered anew in this order; it ascends.
  void retain(const std::vector<int64_t>& documents);
  /// Makes room for `capacity` tokens a document; what is stored stays.
  void reserve(int64_t capacity);

 private:
  int64_t capacity_;
  std::vector<int64_t> lengths_;    // [documents]
  std::vector<at::Tensor> keys_;    // [layers] of [documents at first, K, capacity, D]
  std::vector<at::Tensor> values_;  // the same
};

}  // namespace fettle::model
