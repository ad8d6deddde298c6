// SPDX-License-Identifier: Apache-2.0
/// One layer of the decoder, and what it computes.
///
/// T tokens of all documents in one stream, C hidden size, H query heads, D elements a head, I intermediate size.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "model/kv_cache.h"
#include "model/linear.h"
#include "model/parameter.h"
#include "model/rope.h"
#include "model/spec.h"
#include "ops/lora_linear.h"
#include "ops/row_attention.h"

namespace fettle::model {

struct Layer {
  Parameter input_norm;
  Linear query;
  Linear key;
  Linear value;
  std::optional<Parameter> query_norm;
  std::optional<Parameter> key_norm;
  Linear output;
  Parameter post_attention_norm;
  Linear gate;
  Linear up;
  Linear down;
};

/// What all layers share of one pass.
struct Stream {
  const DecoderSpec& spec;
  const std::vector<int32_t>& cu_seqlens;
  RopeTable rope;
  ops::LoraOptions lora;
  KvCache* cache;
  std::shared_ptr<ops::RowMasks> rows = {};  ///< null: documents have the shape that they have
};

/// What the layer makes of the stream x: [T, C] → [T, C]. `index`: which of the model's it is.
at::Tensor transform(const Layer& layer, int64_t index, const at::Tensor& x, const Stream& stream);

// Its parts, each from what linear layers are given to what the next ones are.

/// [T, C]: what query, key and value are given.
at::Tensor attention_input(const Layer& layer, const at::Tensor& x, const Stream& stream);
/// [T, C] of attention_input → [T, H·D]: what the output projection is given.
at::Tensor attend(const Layer& layer, int64_t index, const at::Tensor& input, const Stream& stream);
/// [T, C]: what gate and up are given, of the stream after attention.
at::Tensor feed_forward_input(const Layer& layer, const at::Tensor& x, const Stream& stream);
/// [T, C] of feed_forward_input → [T, I]: what down is given.
at::Tensor gate(const Layer& layer, const at::Tensor& input, const Stream& stream);

}  // namespace fettle::model
