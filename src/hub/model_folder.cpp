// SPDX-License-Identifier: Apache-2.0
#include "hub/model_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "hub/hub_client.h"
#include "hub/json.h"
#include "hub/model_files.h"
#include "hub/path.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr std::array kTokenizerFiles = {"tokenizer.json", "tokenizer.model"};

ModelPurpose purpose_of(const std::string& option) {
  if (option == "adapter_name_or_path") return ModelPurpose::kAdapter;
  if (option == "tokenizer_name") return ModelPurpose::kTokenizer;
  return option == "config_name" ? ModelPurpose::kConfig : ModelPurpose::kModel;
}

/// model_revision is of model_name_or_path; the other options' repositories are taken at main, unless they are the
/// same.
fs::path fetch_folder(const std::string& name, const config::ModelConfig& model, const std::string& option,
                      ModelPurpose purpose) {
  const bool is_model = name == model.model_name_or_path;
  SnapshotRequest request;
  request.repository = {RepositoryKind::kModel, name, is_model ? model.model_revision : "main", option};
  request.cache_dir = model.cache_dir;
  request.select = [&](const Listing& files) {
    return select_model_files(files, purpose, fmt::format("{}: {}", option, name));
  };
  request.is_complete = [purpose](const fs::path& snapshot, const Listing&) {
    return is_model_complete(snapshot, purpose);
  };
  return fetch_snapshot(request).folder;
}

fs::path resolve_folder_for(const std::string& name, const config::ModelConfig& model, const std::string& option,
                            ModelPurpose purpose) {
  if (name.empty()) {
    throw Error(ExitCode::kUsage, fmt::format("{} is not set", option), "give a folder or a hub name");
  }
  return is_folder(name) ? fs::path(name) : fetch_folder(name, model, option, purpose);
}

bool has_tokenizer(const fs::path& folder) {
  return std::any_of(kTokenizerFiles.begin(), kTokenizerFiles.end(),
                     [&folder](const char* file) { return path_exists(folder / file); });
}

fs::path find_tokenizer(const config::ModelConfig& model, const fs::path& beside, bool is_gguf) {
  if (!model.tokenizer_name.empty()) return resolve_folder(model.tokenizer_name, model, "tokenizer_name");
  if (is_gguf && !has_tokenizer(beside)) {
    throw Error(ExitCode::kNoInput,
                fmt::format("{}: neither tokenizer.json nor tokenizer.model lies beside the GGUF file, and the "
                            "tokenizer inside a GGUF file is not read",
                            beside.string()),
                "give the folder of the original model's tokenizer as tokenizer_name");
  }
  return beside;
}

nlohmann::json read_config(const fs::path& folder, const std::string& option) {
  if (path_exists(folder / kConfigFile)) return read_json_object(folder / kConfigFile);
  std::string hint = "give the folder of a model saved by transformers or Fettle";
  if (path_exists(folder / "adapter_config.json")) {
    hint =
        "this is a LoRA adapter: give it as adapter_name_or_path and its base as model_name_or_path, or make a model "
        "of "
        "both with fettle merge";
  } else {
    for (const fs::path& path : list_folder(folder)) {
      if (path.extension() == ".gguf") hint = fmt::format("give the file itself: {}", path.string());
    }
  }
  throw Error(ExitCode::kNoInput, fmt::format("{}: {} has no {}", option, folder.string(), kConfigFile), hint);
}

nlohmann::json read_generation_config(const fs::path& folder) {
  const fs::path path = folder / "generation_config.json";
  return path_exists(path) ? read_json_object(path) : nlohmann::json::object();
}

}  // namespace

TensorSource ModelFolder::open_weights() const {
  return is_gguf ? TensorSource::open_gguf(GgufFile::open(path)) : TensorSource::open_safetensors(path);
}

std::vector<int64_t> configured_eos_ids(const nlohmann::json& generation_config) {
  const nlohmann::json& configured = generation_config.value("eos_token_id", nlohmann::json());
  std::vector<int64_t> ids;
  for (const nlohmann::json& id : configured.is_array() ? configured : nlohmann::json::array({configured})) {
    if (id.is_number_integer()) ids.push_back(id.get<int64_t>());
  }
  return ids;
}

fs::path resolve_folder(const std::string& name, const config::ModelConfig& model, const std::string& option) {
  return resolve_folder_for(name, model, option, purpose_of(option));
}

fs::path resolve_tokenizer(const config::ModelConfig& model) {
  if (!model.tokenizer_name.empty()) return resolve_folder(model.tokenizer_name, model, "tokenizer_name");
  const fs::path given = model.model_name_or_path;
  if (given.extension() == ".gguf" && !is_folder(given)) return resolve_model(model).tokenizer_folder;
  return resolve_folder_for(model.model_name_or_path, model, "model_name_or_path", ModelPurpose::kTokenizer);
}

ModelFolder resolve_model(const config::ModelConfig& model) {
  const std::string option = "model_name_or_path";
  const fs::path given = model.model_name_or_path;
  ModelFolder result;
  result.is_gguf = given.extension() == ".gguf" && !is_folder(given);
  result.path = result.is_gguf ? given : resolve_folder(model.model_name_or_path, model, option);

  const fs::path folder = result.is_gguf ? fs::absolute(given).parent_path() : result.path;
  if (!model.config_name.empty()) {
    result.config = read_config(resolve_folder(model.config_name, model, "config_name"), "config_name");
  } else {
    result.config = result.is_gguf ? GgufFile::open(given).config() : read_config(folder, option);
  }
  result.generation_config = read_generation_config(folder);
  result.tokenizer_folder = find_tokenizer(model, folder, result.is_gguf);
  return result;
}

}  // namespace fettle::hub
