// SPDX-License-Identifier: Apache-2.0
#include "model/kv_cache.h"

#include <ATen/ops/empty.h>

namespace fettle::model {

KvCache::KvCache(const DecoderSpec& spec, int64_t capacity, at::TensorOptions options) : capacity_(capacity) {
  for (int64_t i = 0; i < spec.layers; ++i) {
    keys_.push_back(at::empty({capacity, spec.kv_heads, spec.head_dim}, options));
    values_.push_back(at::empty({capacity, spec.kv_heads, spec.head_dim}, options));
  }
}

double KvCache::bytes(const DecoderSpec& spec, int64_t capacity, at::ScalarType dtype) {
  const auto row = static_cast<double>(2 * spec.layers * spec.kv_heads * spec.head_dim);
  return row * static_cast<double>(capacity) * static_cast<double>(c10::elementSize(dtype));
}

std::pair<at::Tensor, at::Tensor> KvCache::append(int64_t layer, const at::Tensor& key, const at::Tensor& value) {
  const auto index = static_cast<size_t>(layer);
  const int64_t tokens = key.size(0);
  TORCH_CHECK(length_ + tokens <= capacity_, "KvCache: ", length_, " + ", tokens, " tokens exceed ", capacity_);
  keys_[index].narrow(0, length_, tokens).copy_(key);
  values_[index].narrow(0, length_, tokens).copy_(value);
  return {keys_[index].narrow(0, 0, length_ + tokens), values_[index].narrow(0, 0, length_ + tokens)};
}

}  // namespace fettle::model
