// SPDX-License-Identifier: Apache-2.0
#include "hub/model_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "hub/path.h"
#include "hub/safetensors.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

constexpr const char* kAdapterConfig = "adapter_config.json";
constexpr const char* kAdapterWeights = "adapter_model.safetensors";
constexpr std::array kTokenizerTexts = {"tokenizer.model", "merges.txt", "vocab.txt"};
constexpr std::array kPickles = {".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack"};

bool has(const Listing& files, std::string_view path) {
  return std::ranges::find(files, path, &ListedFile::path) != files.end();
}

bool ends_with_any(std::string_view path, const auto& endings) {
  return std::ranges::any_of(endings, [path](std::string_view ending) { return path.ends_with(ending); });
}

/// Not an index of weights in another format, nor what a trainer left behind.
bool is_useful_json(std::string_view path) {
  if (!path.ends_with(".json") || path == "trainer_state.json") return false;
  return !path.ends_with(".index.json") || path == kSafetensorsIndex;
}

bool is_text(std::string_view path) {
  if (path.starts_with("additional_chat_templates/")) return path.ends_with(".jinja");
  if (path.find('/') != std::string_view::npos) return false;
  return is_useful_json(path) || path.ends_with(".jinja") ||
         std::ranges::find(kTokenizerTexts, path) != kTokenizerTexts.end();
}

bool is_model_weight(const Listing& files, std::string_view path) {
  if (has(files, kSafetensorsFile)) return path == kSafetensorsFile;
  if (!has(files, kSafetensorsIndex) || path.find('/') != std::string_view::npos) return false;
  return path.ends_with(".safetensors") && !path.starts_with("consolidated") && !path.starts_with("adapter_model");
}

[[noreturn]] void fail_pickled(const std::string& subject) {
  throw Error(ExitCode::kData,
              fmt::format("{} has no safetensors, only weights in formats that are not read (pickles)", subject),
              "save the model once with transformers' or PEFT's save_pretrained, which writes safetensors; on the hub "
              "a refs/pr/… revision may have them already");
}

void require_model_weights(const Listing& files, const std::string& subject) {
  if (has(files, kSafetensorsFile) || has(files, kSafetensorsIndex)) return;
  if (has(files, kAdapterConfig)) {
    throw Error(ExitCode::kNoInput, fmt::format("{} is a LoRA adapter, not a model", subject),
                "give it as adapter_name_or_path and its base as model_name_or_path, or make a model of both with "
                "fettle merge");
  }
  if (std::ranges::any_of(files, [](const ListedFile& file) { return file.path.ends_with(".gguf"); })) {
    throw Error(ExitCode::kNoInput, fmt::format("{} has GGUF files and no safetensors", subject),
                "give the original model, or download one .gguf file and give its path");
  }
  if (std::ranges::any_of(files, [](const ListedFile& file) { return ends_with_any(file.path, kPickles); })) {
    fail_pickled(subject);
  }
  throw Error(ExitCode::kNoInput, fmt::format("{} has neither {} nor {}", subject, kSafetensorsFile, kSafetensorsIndex),
              "give a model for transformers");
}

void require_adapter_weights(const Listing& files, const std::string& subject) {
  if (has(files, kAdapterWeights)) return;
  if (has(files, "adapter_model.bin")) fail_pickled(subject);
  throw Error(ExitCode::kNoInput, fmt::format("{} has no {}", subject, kAdapterWeights),
              "give a repository that PEFT or Fettle saved an adapter to");
}

}  // namespace

Listing select_model_files(const Listing& files, ModelPurpose purpose, const std::string& subject) {
  if (purpose == ModelPurpose::kModel) require_model_weights(files, subject);
  if (purpose == ModelPurpose::kAdapter) require_adapter_weights(files, subject);
  Listing selected;
  std::ranges::copy_if(files, std::back_inserter(selected), [&](const ListedFile& file) {
    switch (purpose) {
      case ModelPurpose::kConfig:
        return file.path == "config.json";
      case ModelPurpose::kAdapter:
        return file.path == kAdapterConfig || file.path == kAdapterWeights;
      case ModelPurpose::kTokenizer:
        return is_text(file.path) && file.path != kSafetensorsIndex;
      case ModelPurpose::kModel:
        break;
    }
    const bool is_unused_index = file.path == kSafetensorsIndex && has(files, kSafetensorsFile);
    return (is_text(file.path) && !is_unused_index) || is_model_weight(files, file.path);
  });
  return selected;
}

bool is_model_complete(const fs::path& snapshot, ModelPurpose purpose) {
  const bool has_tokenizer = is_file(snapshot / "tokenizer.json") || is_file(snapshot / "tokenizer.model");
  const bool has_config = is_file(snapshot / "config.json");
  if (purpose == ModelPurpose::kConfig) return has_config;
  if (purpose == ModelPurpose::kTokenizer) return has_tokenizer;
  if (purpose == ModelPurpose::kAdapter) {
    return is_file(snapshot / kAdapterConfig) && is_file(snapshot / kAdapterWeights);
  }
  if (!has_config || !has_tokenizer) return false;
  if (is_file(snapshot / kSafetensorsFile)) return true;
  if (!is_file(snapshot / kSafetensorsIndex)) return false;
  try {
    const auto index =
        parse_safetensors_index(read_file(snapshot / kSafetensorsIndex), (snapshot / kSafetensorsIndex).string());
    return std::ranges::all_of(index, [&](const auto& entry) { return is_file(snapshot / entry.second); });
  } catch (const Error&) {
    return false;  // a broken index: fetched anew
  }
}

}  // namespace fettle::hub
