// SPDX-License-Identifier: Apache-2.0
#include "data/files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "data/reader.h"
#include "hub/dataset.h"
#include "hub/url_file.h"

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

/// Which splits of a folder are wanted. A name that the user gave has to be there; the others may be absent.
struct SplitNames {
  std::string train;
  std::vector<std::string> validation;  ///< the first that exists counts
  bool must_have_train = false;
  bool must_have_validation = false;
};

/// The names that split_files would find something for.
std::string list_splits(const fs::path& folder) {
  std::set<std::string> names;
  for (const fs::path& place : {folder, folder / "data"}) {
    std::error_code failure;
    for (const auto& entry : fs::directory_iterator(place, failure)) {
      const std::string stem = entry.path().stem().string();
      if (find_file_format(entry.path()) && entry.is_regular_file(failure))
        names.insert(stem.substr(0, stem.find('-')));
    }
  }
  return shorten(fmt::format("{}", fmt::join(names, ", ")), 300);
}

[[noreturn]] void fail_split(const fs::path& folder, const char* option, const std::string& name) {
  const std::string there = list_splits(folder);
  throw Error(ExitCode::kNoInput, fmt::format("dataset_name: {} has no split {}", folder.string(), quote(name)),
              there.empty() ? "it has no file that can be read: json, jsonl, csv, txt and parquet are"
                            : fmt::format("give one of these as {}: {}", option, there));
}

DataFiles folder_files(const fs::path& folder, const SplitNames& names) {
  DataFiles files;
  for (const fs::path& place : {folder, folder / "data"}) {
    files.train = split_files(place, names.train);
    for (const std::string& split : names.validation) {
      const bool is_trained = split == names.train && !names.must_have_validation;
      if (files.validation.empty() && !is_trained) files.validation = split_files(place, split);
    }
    if (!files.train.empty() || !files.validation.empty()) break;
  }
  if (names.must_have_train && files.train.empty()) fail_split(folder, "dataset_split", names.train);
  if (names.must_have_validation && files.validation.empty()) {
    fail_split(folder, "dataset_test_split", names.validation.front());
  }
  if (!files.train.empty() || !files.validation.empty()) return files;
  throw Error(ExitCode::kNoInput,
              fmt::format("dataset_name: {} has no {}.* or validation.*", folder.string(), names.train),
              "name the files with train_file and validation_file");
}

DataFiles hub_files(const config::DataConfig& config, Needed needed, const std::string& cache_dir) {
  const bool has_validation = !config.validation_file.empty();
  hub::DatasetFiles found = hub::fetch_dataset({.data = config,
                                                .cache_dir = cache_dir,
                                                .need_train = needed != Needed::kEvaluation,
                                                .need_evaluation = needed != Needed::kTrain && !has_validation});
  DataFiles files;
  files.train = std::move(found.train);
  files.validation = std::move(found.evaluation);
  return files;
}

DataFiles dataset_files(const config::DataConfig& config, Needed needed, const std::string& cache_dir) {
  SplitNames names{.train = "train", .validation = {"validation", "valid", "dev", "eval", "test"}};
  std::optional<config::SplitExpression> train;
  std::optional<config::SplitExpression> validation;
  if (!config.dataset_split.empty()) {
    train = config::parse_split(config.dataset_split, "dataset_split");
    names.train = train->name;
    names.must_have_train = needed != Needed::kEvaluation;
  }
  if (!config.dataset_test_split.empty()) {
    validation = config::parse_split(config.dataset_test_split, "dataset_test_split");
    names.validation = {validation->name};
    names.must_have_validation = needed != Needed::kTrain && config.validation_file.empty();
  }
  std::error_code failure;
  if (fs::is_regular_file(config.dataset_name, failure)) {
    throw Error(ExitCode::kUsage, fmt::format("dataset_name: {} is a file", config.dataset_name),
                "give it as train_file");
  }
  const bool is_folder = fs::is_directory(config.dataset_name);
  if (is_folder && !config.dataset_config_name.empty()) {
    throw Error(
        ExitCode::kConfig,
        fmt::format("dataset_config_name is given, and dataset_name {} is a folder, which has no configurations",
                    config.dataset_name),
        "remove dataset_config_name, or name the files with train_file");
  }
  DataFiles files = is_folder ? folder_files(config.dataset_name, names) : hub_files(config, needed, cache_dir);
  if (train && train->is_slice()) files.train_slice = train;
  if (validation && validation->is_slice()) files.validation_slice = validation;
  return files;
}

/// Local paths as they are, URLs as what was downloaded from them.
std::vector<fs::path> local_files(const std::vector<std::string>& names, const std::string& cache_dir,
                                  const char* option) {
  std::vector<fs::path> files;
  files.reserve(names.size());
  for (const std::string& name : names) {
    files.push_back(hub::is_url(name) ? hub::fetch_url(name, cache_dir, option) : fs::path(name));
  }
  return files;
}

}  // namespace

DataFiles find_files(const config::DataConfig& config, Needed needed, const std::string& cache_dir) {
  DataFiles files;
  if (config.train_file.empty() && !config.dataset_name.empty()) {
    if (hub::is_url(config.dataset_name)) {
      files.train = {hub::fetch_url(config.dataset_name, cache_dir, "dataset_name")};
    } else {
      files = dataset_files(config, needed, cache_dir);
    }
  }
  if (!config.train_file.empty()) files.train = local_files(config.train_file, cache_dir, "train_file");
  if (!config.validation_file.empty()) {
    files.validation = local_files(config.validation_file, cache_dir, "validation_file");
    files.validation_slice.reset();
  }
  if (files.train.empty() && files.validation.empty()) {
    throw Error(ExitCode::kConfig, "no data", "set train_file, or dataset_name to a folder with train.*");
  }
  return files;
}

}  // namespace fettle::data
