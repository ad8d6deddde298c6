// SPDX-License-Identifier: Apache-2.0
#include "hub/adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
#include "hub/json.h"
#include "hub/path.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

constexpr const char* kAdapterConfigFile = "adapter_config.json";
constexpr const char* kWeightsFile = "adapter_model.safetensors";

/// Keys that AdapterConfig carries, or that do not change what a trained adapter computes.
constexpr std::array<std::string_view, 20> kReadKeys = {"auto_mapping",      "base_model_name_or_path",
                                                        "exclude_modules",   "inference_mode",
                                                        "init_lora_weights", "layers_pattern",
                                                        "lora_alpha",        "lora_dropout",
                                                        "megatron_core",     "modules_to_save",
                                                        "peft_type",         "peft_version",
                                                        "qalora_group_size", "r",
                                                        "revision",          "runtime_config",
                                                        "target_modules",    "task_type",
                                                        "use_rslora",        "bias"};

/// Initialisations that leave the base model's weights as they are; pissa, olora, corda and loftq change them, so that
/// their adapters fit no other base.
constexpr std::array<std::string_view, 3> kPlainInitialisations = {"gaussian", "orthogonal", "eva"};

class ConfigReader {
 public:
  ConfigReader(const json& values, std::string_view name) : values_(values), name_(name) {}

  AdapterConfig read() const {
    refuse_unsupported();
    AdapterConfig config;
    config.r = read_rank();
    config.lora_alpha = read_number("lora_alpha", 8);
    config.lora_dropout = read_number("lora_dropout", 0);
    if (config.lora_dropout < 0 || config.lora_dropout >= 1) fail("lora_dropout", "is not in [0, 1)");
    config.use_rslora = read_flag("use_rslora");
    config.target_modules = read_selection("target_modules");
    if (config.target_modules.empty()) fail("target_modules", "is missing or empty");
    config.exclude_modules = read_selection("exclude_modules");
    config.modules_to_save = read_names("modules_to_save");
    config.base_model_name_or_path = read_text("base_model_name_or_path");
    config.revision = read_text("revision");
    return config;
  }

 private:
  [[noreturn]] void fail(std::string_view key, std::string_view what) const {
    throw Error(ExitCode::kData, fmt::format("{}: {} {}", name_, key, what), kWrongContentHint);
  }

  [[noreturn]] void refuse(const std::string& key) const {
    throw Error(ExitCode::kConfig,
                fmt::format("{}: {} = {} is not supported", name_, quote(key), shorten(values_[key].dump(), 120)),
                "only plain LoRA and rsLoRA adapters of linear layers are");
  }

  [[nodiscard]] const json& at(std::string_view key) const {
    static const json kNull;
    const auto found = values_.find(key);
    return found == values_.end() ? kNull : *found;
  }

  void refuse_unsupported() const {
    if (at("peft_type") != "LORA") fail("peft_type", "is not LORA");
    if (!at("task_type").is_null() && at("task_type") != "CAUSAL_LM") refuse("task_type");
    if (!at("bias").is_null() && at("bias") != "none") refuse("bias");
    const json& initialisation = at("init_lora_weights");
    const bool plain = initialisation.is_null() || initialisation.is_boolean() ||
                       std::find(kPlainInitialisations.begin(), kPlainInitialisations.end(), initialisation) !=
                           kPlainInitialisations.end();
    if (!plain) refuse("init_lora_weights");
    for (const auto& [key, value] : values_.items()) {
      const bool read = std::find(kReadKeys.begin(), kReadKeys.end(), key) != kReadKeys.end();
      const bool neutral = value.is_null() || value == false ||
                           ((value.is_structured() || value.is_string()) && (value.empty() || value == ""));
      if (!read && !neutral) refuse(key);
    }
  }

  [[nodiscard]] int64_t read_rank() const {
    const json& value = at("r");
    if (!value.is_number_unsigned() || value.get<uint64_t>() < 1 || value.get<uint64_t>() > INT32_MAX) {
      fail("r", "is not a positive integer");
    }
    return value.get<int64_t>();
  }

  [[nodiscard]] double read_number(std::string_view key, double otherwise) const {
    const json& value = at(key);
    if (value.is_null()) return otherwise;
    if (!value.is_number() || !std::isfinite(value.get<float>())) fail(key, "is not a number of float32");
    return value.get<double>();
  }

  [[nodiscard]] bool read_flag(std::string_view key) const {
    const json& value = at(key);
    if (!value.is_null() && !value.is_boolean()) fail(key, "is neither true nor false");
    return value.is_boolean() && value.get<bool>();
  }

  [[nodiscard]] std::string read_text(std::string_view key) const {
    const json& value = at(key);
    if (!value.is_null() && !value.is_string()) fail(key, "is not a string");
    return value.is_string() ? value.get<std::string>() : std::string();
  }

  [[nodiscard]] std::vector<std::string> read_names(std::string_view key) const {
    const json& value = at(key);
    if (value.is_null()) return {};
    if (!value.is_array()) fail(key, "is not a list of names");
    std::vector<std::string> names;
    for (const json& name : value) {
      if (!name.is_string() || name == "") fail(key, "is not a list of names");
      names.push_back(name.get<std::string>());
    }
    return names;
  }

  [[nodiscard]] ModuleSelection read_selection(std::string_view key) const {
    if (at(key).is_string()) return {.names = {}, .pattern = at(key).get<std::string>()};
    return {.names = read_names(key), .pattern = {}};
  }

  const json& values_;
  std::string_view name_;
};

json null_if_empty(const std::string& text) {
  return text.empty() ? json() : json(text);
}

json null_if_empty(const std::vector<std::string>& names) {
  return names.empty() ? json() : json(names);
}

json to_json(const ModuleSelection& selection) {
  return selection.names.empty() ? null_if_empty(selection.pattern) : json(selection.names);
}

/// PEFT's lora_alpha is an integer, though it works with any number.
json integer_if_whole(double value) {
  const bool whole = std::abs(value) < 0x1p53 && value == std::floor(value);
  return whole ? json(static_cast<int64_t>(value)) : json(value);
}

}  // namespace

AdapterConfig parse_adapter_config(std::string_view text, std::string_view name) {
  return ConfigReader(parse_json_object(text, name), name).read();
}

AdapterConfig read_adapter_config(const fs::path& folder) {
  const fs::path path = folder / kAdapterConfigFile;
  if (!path_exists(path)) {
    throw Error(ExitCode::kNoInput, fmt::format("{}: {} is not there", folder.string(), kAdapterConfigFile),
                "adapter_name_or_path is a folder that Fettle or PEFT saved an adapter to");
  }
  return ConfigReader(read_json_object(path), path.string()).read();
}

void write_adapter_config(const fs::path& folder, const AdapterConfig& config) {
  json values = {
      {"auto_mapping", nullptr},
      {"base_model_name_or_path", null_if_empty(config.base_model_name_or_path)},
      {"bias", "none"},
      {"exclude_modules", to_json(config.exclude_modules)},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"lora_alpha", integer_if_whole(config.lora_alpha)},
      {"lora_dropout", config.lora_dropout},
      {"megatron_core", "megatron.core"},
      {"modules_to_save", null_if_empty(config.modules_to_save)},
      {"peft_type", "LORA"},
      {"peft_version", "0.21.0"},
      {"qalora_group_size", 16},
      {"r", config.r},
      {"revision", null_if_empty(config.revision)},
      {"target_modules", to_json(config.target_modules)},
      {"task_type", "CAUSAL_LM"},
      {"use_rslora", config.use_rslora},
  };
  // What Fettle does not use, with the value that PEFT's LoraConfig has for "not used".
  for (const char* key : {"ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora"}) {
    values[key] = false;
  }
  for (const char* key : {"alpha_pattern", "loftq_config", "rank_pattern"}) values[key] = json::object();
  for (const char* key :
       {"alora_invocation_tokens", "arrow_config", "corda_config", "eva_config", "kasa_config", "layer_replication",
        "layers_pattern", "layers_to_transform", "lora_ga_config", "megatron_config", "monteclora_config",
        "target_parameters", "trainable_token_indices", "use_bdlora", "velora_config"}) {
    values[key] = nullptr;
  }
  write_file(folder / kAdapterConfigFile, values.dump(2) + "\n");
}

TensorSource open_adapter_weights(const fs::path& folder) {
  const fs::path path = folder / kWeightsFile;
  if (!path_exists(path)) {
    throw Error(ExitCode::kNoInput, fmt::format("{}: {} is not there", folder.string(), kWeightsFile),
                path_exists(folder / "adapter_model.bin")
                    ? "adapter_model.bin is a pickle and not read: load it once with PEFT and save it again, which "
                      "writes safetensors"
                    : "adapter_name_or_path is a folder that Fettle or PEFT saved an adapter to");
  }
  return TensorSource::open_safetensors(path);
}

}  // namespace fettle::hub
