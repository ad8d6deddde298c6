// SPDX-License-Identifier: Apache-2.0
#include "data/files.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "base/error.h"
#include "data/reader.h"

namespace fettle::data {
namespace fs = std::filesystem;
namespace {

/// Files of `folder` named `split`.<extension> or `split`-<anything>.<extension> (the hub's shards), by name.
std::vector<fs::path> split_files(const fs::path& folder, std::string_view split) {
  std::vector<fs::path> files;
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(folder, failure)) {
    const std::string stem = entry.path().stem().string();
    const bool named = stem == split || stem.starts_with(std::string(split) + "-");
    if (named && find_file_format(entry.path()) && entry.is_regular_file(failure)) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

DataFiles folder_files(const fs::path& folder) {
  for (const fs::path& place : {folder, folder / "data"}) {
    DataFiles files;
    files.train = split_files(place, "train");
    for (const auto split : {"validation", "valid", "dev", "eval", "test"}) {
      if (files.validation.empty()) files.validation = split_files(place, split);
    }
    if (!files.train.empty() || !files.validation.empty()) return files;
  }
  throw Error(ExitCode::kNoInput, fmt::format("dataset_name: {} has no train.* or validation.*", folder.string()),
              "name the files with train_file and validation_file");
}

}  // namespace

DataFiles find_files(const config::DataConfig& config) {
  DataFiles files;
  if (config.train_file.empty() && !config.dataset_name.empty()) {
    if (!fs::is_directory(config.dataset_name)) {
      throw Error(ExitCode::kNoInput, fmt::format("dataset_name: {} is not a folder", config.dataset_name),
                  "download the dataset, or name its files with train_file");
    }
    files = folder_files(config.dataset_name);
  }
  if (!config.train_file.empty()) files.train.assign(config.train_file.begin(), config.train_file.end());
  if (!config.validation_file.empty()) {
    files.validation.assign(config.validation_file.begin(), config.validation_file.end());
  }
  if (files.train.empty() && files.validation.empty()) {
    throw Error(ExitCode::kConfig, "no data", "set train_file, or dataset_name to a folder with train.*");
  }
  return files;
}

}  // namespace fettle::data
