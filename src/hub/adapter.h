// SPDX-License-Identifier: Apache-2.0
/// PEFT's LoRA adapter folder: adapter_config.json and adapter_model.safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "hub/tensor_source.h"

namespace fettle::hub {

/// Modules by the end of their name ("q_proj"), or, in PEFT's other spelling, by one regular expression that must match
/// the whole name. At most one of the two is set. `pattern` may be "all-linear", as in PEFT.
struct ModuleSelection {
  std::vector<std::string> names;
  std::string pattern;

  [[nodiscard]] bool empty() const { return names.empty() && pattern.empty(); }
};

/// The fields of PEFT's LoraConfig that Fettle acts on; every other field has PEFT's neutral value.
struct AdapterConfig {
  int64_t r = 8;
  double lora_alpha = 8;
  double lora_dropout = 0.0;
  bool use_rslora = false;
  ModuleSelection target_modules;
  ModuleSelection exclude_modules;
  std::vector<std::string> modules_to_save;
  std::string base_model_name_or_path;  ///< empty: null in the file
  std::string revision;                 ///< empty: null in the file
};

/// Parses adapter_config.json text. Throws Error{kData} if it is not what PEFT writes, {kConfig} naming the key for a
/// feature that changes the result and is not supported (use_dora, bias, rank_pattern, …).
AdapterConfig parse_adapter_config(std::string_view json, std::string_view name);

/// `folder`/adapter_config.json. Throws Error{kNoInput} if it is absent, else as parse_adapter_config.
AdapterConfig read_adapter_config(const std::filesystem::path& folder);

/// Writes `folder`/adapter_config.json with every key that PEFT 0.21 writes.
void write_adapter_config(const std::filesystem::path& folder, const AdapterConfig& config);

/// `folder`/adapter_model.safetensors; tensor names are base_model.model.<module>.lora_A.weight and so on, as in the
/// file. Throws Error{kNoInput} if it is absent, with a hint when only adapter_model.bin is there.
TensorSource open_adapter_weights(const std::filesystem::path& folder);

}  // namespace fettle::hub
