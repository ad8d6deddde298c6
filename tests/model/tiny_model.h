// SPDX-License-Identifier: Apache-2.0
/// Tiny models with random weights, written to a folder of the test's own and read back through the hub room.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "hub/safetensors.h"
#include "hub/tensor_source.h"
#include "model/decoder.h"
#include "support/temporary_folder.h"

namespace fettle::model::testing {

inline nlohmann::json tiny_config() {
  return {{"model_type", "llama"},    {"vocab_size", 61},
          {"hidden_size", 32},        {"intermediate_size", 48},
          {"num_hidden_layers", 3},   {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"max_position_embeddings", 256},
          {"rope_theta", 10000.0},    {"tie_word_embeddings", false}};
}

using Tensors = std::map<std::string, at::Tensor>;

inline Tensors random_tensors(const DecoderSpec& spec) {
  Tensors tensors;
  for (const TensorShape& tensor : expected_tensors(spec)) {
    at::Tensor values = at::randn(tensor.shape, at::kFloat) * (tensor.shape.size() == 2 ? 0.2 : 0.1);
    tensors[tensor.name] = tensor.name.find("norm") != std::string::npos ? values + 1 : values;
  }
  return tensors;
}

inline hub::TensorSource write_tensors(const std::filesystem::path& file, const Tensors& tensors) {
  std::vector<hub::TensorView> views;
  for (const auto& [name, tensor] : tensors) {
    views.push_back({.name = name,
                     .dtype = tensor.scalar_type() == at::kBFloat16 ? hub::DType::kBF16 : hub::DType::kF32,
                     .shape = tensor.sizes().vec(),
                     .bytes = {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()},
                     .interleaved_heads = 0});
  }
  hub::write_safetensors(file, views, {});
  return hub::TensorSource::open_safetensors(file);
}

/// A model of `config` with random weights; the same for the same seed of the default generator.
class TinyModel {
 public:
  explicit TinyModel(const nlohmann::json& config = tiny_config())
      : spec(DecoderSpec::from_config(config)),
        source(write_tensors(folder_.path() / "model.safetensors", random_tensors(spec))) {}

  [[nodiscard]] Decoder load(at::ScalarType type = at::kFloat) const { return Decoder::load(spec, source, type); }

 private:
  TemporaryFolder folder_;

 public:
  DecoderSpec spec;
  hub::TensorSource source;
};

/// Random documents of these lengths with random targets, about a third of them ignored.
inline Batch random_batch(const std::vector<int64_t>& lengths, int64_t vocabulary) {
  Batch batch;
  batch.cu_seqlens = {0};
  std::vector<at::Tensor> positions;
  for (const int64_t length : lengths) {
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.cu_seqlens.back() + length));
    positions.push_back(at::arange(length, at::kLong));
  }
  const int64_t tokens = batch.cu_seqlens.back();
  batch.positions = at::cat(positions);
  batch.tokens = at::randint(0, vocabulary, {tokens}, at::kLong);
  batch.labels = at::randint(0, vocabulary, {tokens}, at::kLong);
  batch.labels.masked_fill_(at::randint(0, 3, {tokens}, at::kLong) == 0, -100);
  return batch;
}

/// Document `i` of a batch, as a batch of its own.
inline Batch document(const Batch& batch, size_t i) {
  const int64_t begin = batch.cu_seqlens[i];
  const int64_t length = batch.cu_seqlens[i + 1] - begin;
  return {batch.tokens.narrow(0, begin, length),
          batch.labels.narrow(0, begin, length),
          batch.positions.narrow(0, begin, length),
          {0, static_cast<int32_t>(length)}};
}

inline config::LoraConfig lora_config(double dropout = 0) {
  config::LoraConfig config;
  config.lora_r = 4;
  config.lora_alpha = 8;
  config.lora_dropout = dropout;
  return config;
}

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace fettle::model::testing
