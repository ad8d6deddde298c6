// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "data/export.h"
#include "data/files.h"
#include "hub/hub_client.h"
#include "hub/model_folder.h"

namespace fettle::cli {
namespace {

void print(const char* option, const std::filesystem::path& path) {
  fmt::print("{}: {}\n", option, path.string());
}

void fetch_models(const config::ModelConfig& model) {
  const std::vector<std::pair<const char*, std::string>> named = {
      {"model_name_or_path", model.model_name_or_path},
      {"config_name", model.config_name},
      {"tokenizer_name", model.tokenizer_name},
      {"adapter_name_or_path", model.adapter_name_or_path},
  };
  for (const auto& [option, name] : named) {
    if (name.empty()) continue;
    const bool is_gguf = std::filesystem::path(name).extension() == ".gguf";  // always a file of this machine
    print(option, is_gguf ? hub::resolve_model(model).path : hub::resolve_folder(name, model, option));
  }
}

void fetch_records(const config::Config& config, bool is_export) {
  const data::DataFiles files =
      data::find_files(config.data, is_export ? data::Needed::kTrain : data::Needed::kBoth, config.model.cache_dir);
  for (const auto& file : files.train) print("train_file", file);
  for (const auto& file : files.validation) print("validation_file", file);
}

}  // namespace

int download(const Arguments& arguments) {
  const auto config = read_options(arguments, config::Command::kDownload);
  if (!config) return 0;
  const std::string& output = config->preprocess.output;
  const bool is_export = !output.empty();
  if (is_export) data::require_export_format(output);
  {
    std::optional<hub::RefreshScope> refresh;
    if (config->preprocess.refresh) refresh.emplace();
    fetch_models(config->model);
    const config::DataConfig& data = config->data;
    const bool has_records = !data.dataset_name.empty() || !data.train_file.empty() || !data.validation_file.empty();
    if (has_records) fetch_records(*config, is_export);
  }
  if (is_export) {
    const int64_t records = data::export_records(config->data, output, config->model.cache_dir);
    log::info("{} records written to {}", records, output);
    print("output", output);
  }
  return 0;
}

}  // namespace fettle::cli
