// SPDX-License-Identifier: Apache-2.0
/// What every command that runs a model starts from.
#pragma once

#include <optional>

#include "config/config.h"
#include "data/dataset.h"
#include "data/task.h"
#include "device/device.h"
#include "hub/model_folder.h"
#include "model/decoder.h"
#include "text/tokenizer.h"

namespace fettle::train {

/// A model before its weights are touched: cheap to load, so that mistakes in options and data show at once.
struct ModelInputs {
  hub::ModelFolder base;
  model::DecoderSpec spec;
  text::Tokenizer tokenizer;
};

/// device::start, and ops with or without their own kernels, as fused_ops says.
device::Device start_device(const config::DeviceConfig& options, const device::Place& place = {});

/// Throws Error as hub::resolve_model, model::DecoderSpec::from_config and text::Tokenizer::load.
ModelInputs load_inputs(const config::ModelConfig& model);

/// Throws Error{kConfig} naming the first document with a token that the model has no embedding for.
void require_vocabulary(const ModelInputs& inputs, const data::TokenDataset& dataset);

/// The same for the items of a task.
void require_vocabulary(const ModelInputs& inputs, const data::Task& task);

/// bfloat16 or float32.
at::ScalarType compute_type(const config::TrainingConfig& training);

/// What load_in_8bit, load_in_fp8, load_in_4bit and bnb_4bit_quant_type ask for; none: the base is not quantized.
std::optional<ops::WeightFormat> weight_format(const config::ModelConfig& model);

/// What a model is computed with, besides its own options.
struct ComputeOptions {
  at::ScalarType type;
  at::Device device = at::kCPU;
  std::optional<model::LayerSharing> sharing = {};  ///< see model::LoadOptions
};

/// The base's weights, with those of adapter_name_or_path if it is set. `lora_dropout`: in place of the adapter's own.
model::Decoder load_model(const ModelInputs& inputs, const config::ModelConfig& model, const ComputeOptions& compute,
                          std::optional<double> lora_dropout = std::nullopt);

}  // namespace fettle::train
