// SPDX-License-Identifier: Apache-2.0
#include "cli/outputs.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>
#include <vector>

#include "base/error.h"

namespace fettle::cli {
namespace fs = std::filesystem;
namespace {

// Of the files in a model's folder, those that are the model; others, such as earlier answers, are not read.
constexpr std::array kModelFiles = {".safetensors", ".json", ".model", ".gguf", ".jinja"};

bool is_same(const fs::path& one, const fs::path& other) {
  std::error_code failure;
  return fs::equivalent(one, other, failure);
}

}  // namespace

void require_not_read(const config::Config& config, std::string_view option, const std::string& output) {
  std::error_code failure;
  if (output.empty() || !fs::exists(output, failure)) return;
  const fs::path file = fs::weakly_canonical(output, failure);
  std::vector<std::string> files = config.data.train_file;
  files.insert(files.end(), config.data.validation_file.begin(), config.data.validation_file.end());
  files.insert(files.end(), {config.eval.task_file, config.generation.prompts_file});
  std::vector<std::string> models = {config.model.model_name_or_path, config.model.adapter_name_or_path,
                                     config.model.tokenizer_name, config.model.config_name};
  models.insert(models.end(), config.eval.compare.begin(), config.eval.compare.end());
  const bool is_model_file = std::ranges::find(kModelFiles, file.extension()) != kModelFiles.end();
  const bool is_read =
      std::ranges::any_of(files, [&](const std::string& input) { return is_same(input, file); }) ||
      std::ranges::any_of(models, [&](const std::string& input) {
        return is_same(input, file) || (is_model_file && !input.empty() && is_same(input, file.parent_path()));
      });
  if (is_read) {
    throw Error(ExitCode::kUsage, fmt::format("{}: {} is read by this command", option, output), "name another file");
  }
}

}  // namespace fettle::cli
