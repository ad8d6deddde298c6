// SPDX-License-Identifier: Apache-2.0
#include "model/layer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <cmath>

#include "ops/attention.h"
#include "ops/gated.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"

namespace fettle::model {
namespace {

struct Projected {
  const at::Tensor& query;  // [T, H, D]
  const at::Tensor& key;    // [T, K, D]
  const at::Tensor& value;
};

// The attention where earlier tokens of the documents are cached.
at::Tensor attend_cached(const Projected& next, int64_t index, const ops::AttentionSpec& attention,
                         const Stream& stream) {
  KvCache& cache = *stream.cache;
  cache.append(index, next.key, next.value, stream.cu_seqlens);
  if (cache.is_empty()) return ops::attention(next.query, next.key, next.value, attention, stream.cu_seqlens);
  const at::Tensor keys = cache.keys(index);
  const at::Tensor values = cache.values(index);
  const int64_t documents = cache.documents();
  if (documents > 1 && next.query.size(0) == documents) {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < documents; ++i) lengths.push_back(cache.length(i) + 1);
    return ops::attention_of_last(next.query, keys, values, attention, lengths);
  }
  std::vector<at::Tensor> mixed;
  for (int64_t i = 0; i < documents; ++i) {
    const int64_t begin = stream.cu_seqlens[static_cast<size_t>(i)];
    const int64_t tokens = stream.cu_seqlens[static_cast<size_t>(i) + 1] - begin;
    const auto past = [&](const at::Tensor& all) {
      return all.select(0, i).narrow(1, 0, cache.length(i) + tokens).transpose(0, 1);  // [S, K, D]
    };
    mixed.push_back(ops::attention_with_past(next.query.narrow(0, begin, tokens), past(keys), past(values), attention));
  }
  return documents == 1 ? mixed.front() : at::cat(mixed);
}

}  // namespace

at::Tensor attention_input(const Layer& layer, const at::Tensor& x, const Stream& stream) {
  return ops::rms_norm(x, layer.input_norm.value(), stream.spec.norm_eps);
}

at::Tensor attend(const Layer& layer, int64_t index, const at::Tensor& input, const Stream& stream) {
  const DecoderSpec& spec = stream.spec;
  const int64_t tokens = input.size(0);
  const auto projected = project(input, {&layer.query, &layer.key, &layer.value}, stream.lora);
  at::Tensor query = projected[0].view({tokens, spec.heads, spec.head_dim});
  at::Tensor key = projected[1].view({tokens, spec.kv_heads, spec.head_dim});
  at::Tensor value = projected[2].view({tokens, spec.kv_heads, spec.head_dim});
  if (spec.qk_norm) {
    query = ops::rms_norm(query, layer.query_norm->value(), spec.norm_eps);
    key = ops::rms_norm(key, layer.key_norm->value(), spec.norm_eps);
  }
  query = ops::apply_rotary(query, stream.rope.cos, stream.rope.sin);
  key = ops::apply_rotary(key, stream.rope.cos, stream.rope.sin);

  const ops::AttentionSpec attention{.scale = 1.0 / std::sqrt(static_cast<double>(spec.head_dim)),
                                     .window = spec.windows[static_cast<size_t>(index)]};
  at::Tensor mixed;  // [T, H, D]
  if (stream.rows != nullptr) {
    mixed = ops::attention(query, key, value, attention, *stream.rows);
  } else if (stream.cache == nullptr) {
    mixed = ops::attention(query, key, value, attention, stream.cu_seqlens);
  } else {
    mixed = attend_cached({query, key, value}, index, attention, stream);
  }
  return mixed.view({tokens, spec.heads * spec.head_dim});
}

at::Tensor feed_forward_input(const Layer& layer, const at::Tensor& x, const Stream& stream) {
  return ops::rms_norm(x, layer.post_attention_norm.value(), stream.spec.norm_eps);
}

at::Tensor gate(const Layer& layer, const at::Tensor& input, const Stream& stream) {
  const auto projected = project(input, {&layer.gate, &layer.up}, stream.lora);
  return ops::swiglu(projected[0], projected[1]);
}

at::Tensor transform(const Layer& layer, int64_t index, const at::Tensor& x, const Stream& stream) {
  const at::Tensor mixed = attend(layer, index, attention_input(layer, x, stream), stream);
  const at::Tensor attended = x + project(mixed, {&layer.output}, stream.lora)[0];
  const at::Tensor gated = gate(layer, feed_forward_input(layer, attended, stream), stream);
  return attended + project(gated, {&layer.down}, stream.lora)[0];
}

}  // namespace fettle::model
