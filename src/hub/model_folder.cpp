// SPDX-License-Identifier: Apache-2.0
#include "hub/model_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
#include "hub/json.h"
#include "hub/path.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr std::array kTokenizerFiles = {"tokenizer.json", "tokenizer.model"};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : value;
}

/// The hub cache, by huggingface_hub's rules.
fs::path cache_folder(const std::string& cache_dir) {
  if (!cache_dir.empty()) return cache_dir;
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (const std::string value = environment(name); !value.empty()) return value;
  }
  if (const std::string home = environment("HF_HOME"); !home.empty()) return fs::path(home) / "hub";
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty()) {
    return fs::path(cache) / "huggingface" / "hub";
  }
  return fs::path(environment("HOME")) / ".cache" / "huggingface" / "hub";
}

/// "name" or "org/name" with the characters that the hub allows; anything else can only be a path.
bool is_hub_name(const std::string& name) {
  const bool characters = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '/';
  });
  return characters && name.find("..") == std::string::npos && name.find("--") == std::string::npos &&
         name.front() != '/' && name.front() != '.' && name.back() != '/' &&
         std::count(name.begin(), name.end(), '/') <= 1;
}

bool is_plain_revision(const std::string& revision) {
  return !revision.empty() && revision.front() != '/' && revision.find("..") == std::string::npos;
}

std::string trim(const std::string& text) {
  const auto last = text.find_last_not_of(" \n\r\t");
  return text.substr(0, last == std::string::npos ? 0 : last + 1);
}

/// The snapshot folder of `revision`, by a branch or tag's refs file or by its commit; nothing if it is not cached.
std::optional<fs::path> find_snapshot(const fs::path& repository, const std::string& revision) {
  const fs::path reference = repository / "refs" / revision;
  const std::string commit = is_file(reference) ? trim(read_file(reference)) : revision;
  if (!is_plain_revision(commit)) return std::nullopt;
  const fs::path snapshot = repository / "snapshots" / commit;
  return is_folder(snapshot) ? std::optional(snapshot) : std::nullopt;
}

fs::path find_in_cache(const std::string& name, const config::ModelConfig& model, const std::string& option) {
  if (!is_hub_name(name)) {
    throw Error(ExitCode::kNoInput,
                fmt::format("{}: {} is neither a folder, a .gguf file nor a hub name", option, quote(name)),
                "check the path");
  }
  if (!is_plain_revision(model.model_revision)) {
    throw Error(ExitCode::kUsage,
                fmt::format("model_revision: {} is not a branch, tag or commit", quote(model.model_revision)),
                "give its name as the hub shows it");
  }
  std::string folder = "models--" + name;
  if (const size_t slash = folder.find('/'); slash != std::string::npos) folder.replace(slash, 1, "--");
  const fs::path repository = cache_folder(model.cache_dir) / folder;
  const auto snapshot = find_snapshot(repository, model.model_revision);
  if (!snapshot) {
    throw Error(ExitCode::kNoInput,
                fmt::format("{}: {} is not a local folder or file, and revision {} is not in the hub cache: looked for "
                            "{} and {}",
                            option, name, model.model_revision, (repository / "refs" / model.model_revision).string(),
                            (repository / "snapshots" / model.model_revision).string()),
                fmt::format("nothing is downloaded: fetch it with `hf download {}`, or give a folder", name));
  }
  return *snapshot;
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
    hint = "this is a LoRA adapter: give it as adapter_name_or_path, and its base model as model_name_or_path";
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

fs::path resolve_folder(const std::string& name, const config::ModelConfig& model, const std::string& option) {
  if (name.empty()) {
    throw Error(ExitCode::kUsage, fmt::format("{} is not set", option), "give a folder or a hub name");
  }
  return is_folder(name) ? fs::path(name) : find_in_cache(name, model, option);
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
