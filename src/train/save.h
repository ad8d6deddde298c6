// SPDX-License-Identifier: Apache-2.0
/// The result of a run on disk: an adapter that PEFT loads, or a model that transformers loads.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "config/config.h"
#include "hub/model_folder.h"
#include "model/decoder.h"
#include "text/tokenizer.h"
#include "train/checkpoint.h"

namespace fettle::train {

/// adapter_config.json of this model's adapter, naming its base.
hub::AdapterConfig adapter_config(const model::Decoder& model, const config::ModelConfig& base);

/// What a checkpoint holds beside its tensors and state: adapter_config.json, or the base's config.json.
AddFiles adapter_files(const model::Decoder& model, const config::ModelConfig& base);
AddFiles model_files(const hub::ModelFolder& base);

/// adapter_model.safetensors (float32), adapter_config.json, tokenizer and template files. Each file is complete or not
/// there; the weights come last. Throws Error{kDiverged} if a tensor is not finite, {kIo} or {kPermission}.
void save_adapter(const std::filesystem::path& folder, const model::Decoder& model, const config::ModelConfig& base,
                  const text::Tokenizer& tokenizer);

/// Sharded safetensors in the base's type (bfloat16 for a quantized base), config.json, generation_config.json,
/// tokenizer and template files. Throws as save_adapter.
void save_full_model(const std::filesystem::path& folder, const model::Decoder& model, const hub::ModelFolder& base,
                     const text::Tokenizer& tokenizer, uint64_t max_shard_size);

/// What stands beside the weights of a full model in `type`: config.json, generation_config.json, tokenizer and
/// template files.
void write_model_files(const std::filesystem::path& folder, const hub::ModelFolder& base,
                       const text::Tokenizer& tokenizer, at::ScalarType type);

/// Whether the folder holds a whole result. Throws Error{kIo} or {kPermission} if that cannot be read.
bool has_result(const std::filesystem::path& folder, bool is_adapter);

/// The type that a model's weights have on disk: that of its largest tensor; bfloat16 if that is quantized.
at::ScalarType stored_type(const hub::TensorSource& source);

/// The weights of a saved result, loaded as any other program would: `base`, quantized or not, and its adapter, or a
/// full model in `folder`.
model::Decoder load_result(const std::filesystem::path& folder, const hub::ModelFolder& base, bool is_adapter,
                           at::ScalarType compute_type, const model::LoadOptions& options = {});

}  // namespace fettle::train
