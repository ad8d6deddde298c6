// SPDX-License-Identifier: Apache-2.0
#include "model/kv_cache.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace fettle::model {
namespace {

/// Of several documents, the shorter ones are read past their end too, with a weight of zero, and zero times NaN is
/// NaN. Of one nothing is, and what is not used takes no memory.
at::Tensor room(at::IntArrayRef shape, at::TensorOptions options) {
  return shape[0] == 1 ? at::empty(shape, options) : at::zeros(shape, options);
}

}  // namespace

KvCache::KvCache(const DecoderSpec& spec, int64_t capacity, at::TensorOptions options, int64_t documents)
    : capacity_(capacity), lengths_(static_cast<size_t>(documents), 0) {
  for (int64_t i = 0; i < spec.layers; ++i) {
    keys_.push_back(room({documents, spec.kv_heads, capacity, spec.head_dim}, options));
    values_.push_back(room({documents, spec.kv_heads, capacity, spec.head_dim}, options));
  }
}

double KvCache::bytes(const DecoderSpec& spec, int64_t capacity, at::ScalarType dtype) {
  const auto row = static_cast<double>(2 * spec.layers * spec.kv_heads * spec.head_dim);
  return row * static_cast<double>(capacity) * static_cast<double>(c10::elementSize(dtype));
}

bool KvCache::is_empty() const {
  return std::ranges::all_of(lengths_, [](int64_t length) { return length == 0; });
}

void KvCache::append(int64_t layer, const at::Tensor& key, const at::Tensor& value,
                     const std::vector<int32_t>& cu_seqlens) {
  const auto index = static_cast<size_t>(layer);
  TORCH_CHECK(cu_seqlens.size() == lengths_.size() + 1, "KvCache: ", cu_seqlens.size(), " boundaries of ",
              lengths_.size(), " documents");
  for (int64_t i = 0; i < documents(); ++i) {
    const int64_t begin = cu_seqlens[static_cast<size_t>(i)];
    const int64_t tokens = cu_seqlens[static_cast<size_t>(i) + 1] - begin;
    TORCH_CHECK(length(i) + tokens <= capacity_, "KvCache: ", length(i), " + ", tokens, " tokens exceed ", capacity_);
    const auto place = [&](const at::Tensor& all) { return all.select(0, i).narrow(1, length(i), tokens); };
    place(keys_[index]).copy_(key.narrow(0, begin, tokens).transpose(0, 1));
    place(values_[index]).copy_(value.narrow(0, begin, tokens).transpose(0, 1));
  }
}

void KvCache::advance(const std::vector<int32_t>& cu_seqlens) {
  for (size_t i = 0; i < lengths_.size(); ++i) lengths_[i] += cu_seqlens[i + 1] - cu_seqlens[i];
}

void KvCache::truncate(int64_t document, int64_t length) {
  int64_t& stored = lengths_[static_cast<size_t>(document)];
  TORCH_CHECK(length <= stored, "KvCache: ", length, " of ", stored, " tokens");
  stored = length;
}

void KvCache::retain(const std::vector<int64_t>& documents) {
  for (int64_t to = 0; to < std::ssize(documents); ++to) {
    const int64_t from = documents[static_cast<size_t>(to)];
    TORCH_CHECK(to <= from && from < this->documents(), "KvCache: no document ", from);
    if (to == from) continue;
    const int64_t tokens = length(from);
    for (auto* all : {&keys_, &values_}) {
      for (const at::Tensor& stored : *all) {
        stored.select(0, to).narrow(1, 0, tokens).copy_(stored.select(0, from).narrow(1, 0, tokens));
      }
    }
    lengths_[static_cast<size_t>(to)] = tokens;
  }
  lengths_.resize(documents.size());
}

void KvCache::reserve(int64_t capacity) {
  if (capacity <= capacity_) return;
  const int64_t stored = *std::ranges::max_element(lengths_);
  for (auto* all : {&keys_, &values_}) {
    for (at::Tensor& old : *all) {
      const at::Tensor grown = room({old.size(0), old.size(1), capacity, old.size(3)}, old.options());
      grown.narrow(2, 0, stored).copy_(old.narrow(2, 0, stored));
      old = grown;
    }
  }
  capacity_ = capacity;
}

}  // namespace fettle::model
