// SPDX-License-Identifier: Apache-2.0
/// Inside of Decoder, shared by decoder.cpp (the computation) and decoder_training.cpp (what is trained). Not for other
/// rooms.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "model/decoder.h"
#include "model/gathered_layers.h"
#include "model/layer.h"
#include "model/parameter.h"
#include "ops/lora_linear.h"

namespace fettle::model {

struct DecoderImpl {
  DecoderSpec spec;
  at::ScalarType dtype;
  at::Device device = at::kCPU;
  std::shared_ptr<const hub::TensorSource> source;  // full fine-tuning starts from the file's own precision
  std::shared_ptr<Parameter> embedding;
  std::vector<Layer> layers;
  std::optional<Parameter> norm;
  std::shared_ptr<Parameter> head;  // the embedding itself where they are tied

  std::optional<hub::AdapterConfig> adapter;
  double lora_scaling = 1.0;
  bool is_training = false;
  bool checkpoints_gradients = false;
  std::unique_ptr<GatheredLayers> gathered;  // null: every layer's weights are here

  [[nodiscard]] bool is_tied() const { return head == embedding; }
  [[nodiscard]] ops::LoraOptions lora_options() const {
    return {.scaling = lora_scaling, .dropout = is_training && adapter.has_value() ? adapter->lora_dropout : 0.0};
  }
  /// In the order of the computation; the head, a product with no bias and no LoRA, is not among them.
  [[nodiscard]] std::vector<Linear*> linears();
  /// The weights of a layer, LoRA's not included.
  [[nodiscard]] static std::vector<Parameter*> weights_of(Layer& layer);
  /// All, LoRA's included, each once, in the order of the computation.
  [[nodiscard]] std::vector<Parameter*> parameters();
};

}  // namespace fettle::model
