// SPDX-License-Identifier: Apache-2.0
/// What model_name_or_path resolves to: a folder, a .gguf file, or a snapshot in the hub cache.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "config/config.h"
#include "hub/tensor_source.h"

namespace fettle::hub {

struct ModelFolder {
  std::filesystem::path path;  ///< the folder, or the .gguf file
  bool is_gguf = false;
  nlohmann::json config;             ///< Hugging Face config.json keys, also for GGUF
  nlohmann::json generation_config;  ///< an empty object if the model has none
  std::filesystem::path tokenizer_folder;

  [[nodiscard]] TensorSource open_weights() const;
};

/// generation_config.json's eos_token_id, a number or a list; empty if it has none.
std::vector<int64_t> configured_eos_ids(const nlohmann::json& generation_config);

/// Downloads what is named on the hub and not in the cache. Throws Error as fetch_snapshot; {kData} for a broken
/// config.json, {kUsage} if the name is empty.
ModelFolder resolve_model(const config::ModelConfig& model);

/// A local folder, or the snapshot of a hub name ("org/name"). `option` says what it is wanted for: model_name_or_path,
/// tokenizer_name, config_name or adapter_name_or_path.
std::filesystem::path resolve_folder(const std::string& name, const config::ModelConfig& model,
                                     const std::string& option);

/// The folder of the tokenizer alone: of a hub's model no weights are downloaded for it.
std::filesystem::path resolve_tokenizer(const config::ModelConfig& model);

}  // namespace fettle::hub
