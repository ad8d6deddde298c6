// SPDX-License-Identifier: Apache-2.0
#include "model/layer.h"

#include <ATen/TensorOperators.h>

#include <cmath>

#include "ops/attention.h"
#include "ops/gated.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"

namespace fettle::model {

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
    const auto [keys, values] = stream.cache->append(index, key, value);
    mixed = ops::attention_with_past(query, keys, values, attention);
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
