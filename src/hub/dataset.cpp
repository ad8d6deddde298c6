// SPDX-License-Identifier: Apache-2.0
#include "hub/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/utf8.h"
#include "hub/dataset_files.h"
#include "hub/hub_client.h"
#include "hub/path.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

constexpr const char* kConverted = "refs/convert/parquet";
constexpr const char* kReadme = "README.md";
constexpr const char* kOption = "dataset_name";

std::vector<std::string> paths_of(const Listing& files) {
  std::vector<std::string> paths;
  for (const ListedFile& file : files) paths.push_back(file.path);
  return paths;
}

/// A repository at one commit, and its splits.
struct Source {
  Snapshot snapshot;
  DatasetSplits splits;
};

class DatasetFetcher {
 public:
  explicit DatasetFetcher(const DatasetRequest& request)
      : request_(request), subject_(fmt::format("{}: {}", kOption, request.data.dataset_name)) {}

  DatasetFiles fetch() {
    const Source source = find_source();
    std::optional<DatasetSplit> train;
    std::optional<DatasetSplit> evaluation;
    if (request_.need_train) train = train_split(source.splits);
    if (request_.need_evaluation) evaluation = evaluation_split(source.splits);
    std::set<std::string> wanted;
    for (const auto& split : {train, evaluation}) {
      if (split) wanted.insert(split->paths.begin(), split->paths.end());
    }
    const Snapshot snapshot = take(source.snapshot.commit, wanted);
    if (!snapshot.is_listed) require_all_shards(wanted, snapshot.folder);
    DatasetFiles files;
    for (const auto& [split, target] : {std::pair(train, &files.train), std::pair(evaluation, &files.evaluation)}) {
      if (!split) continue;
      for (const std::string& path : split->paths) target->push_back(snapshot.folder / path);
    }
    return files;
  }

 private:
  /// The repository's own files if there are any that can be read and no script makes the records of them; else the
  /// hub's copy.
  Source find_source() {
    Snapshot own = take(request_.data.dataset_revision, {kReadme});
    const std::vector<std::string> paths = paths_of(own.files);
    std::vector<CardConfig> configs;
    if (is_file(own.folder / kReadme)) configs = read_dataset_card(read_file(own.folder / kReadme), subject_);
    const std::string& name = request_.data.dataset_name;
    const std::string script = name.substr(name.rfind('/') + 1) + ".py";
    const bool has_script = configs.empty() && std::ranges::find(paths, script) != paths.end();
    if (!has_script) {
      DatasetSplits splits = find_splits(paths, choose_config(configs, request_.data.dataset_config_name, subject_));
      if (!splits.empty()) return {std::move(own), std::move(splits)};
    }
    return find_converted(paths, has_script);
  }

  Source find_converted(const std::vector<std::string>& paths, bool has_script) {
    const std::string why =
        has_script ? "it is made by a script, which is never run" : "it has no files that can be read";
    Snapshot converted;
    try {
      converted = take(kConverted, {});
    } catch (const Error& error) {
      if (error.code() != ExitCode::kNoInput) throw;
      std::string some;
      for (size_t i = 0; i < std::min<size_t>(paths.size(), 5); ++i) some += (i == 0 ? "" : ", ") + paths[i];
      throw Error(ExitCode::kNoInput,
                  fmt::format("{}: {}, and the hub has no Parquet copy of it ({})", subject_, why, shorten(some, 200)),
                  "json, jsonl, csv, txt and parquet are read: convert it, and give the files as train_file");
    }
    log::info("{}: {}; the hub's Parquet copy is used ({})", subject_, why, kConverted);
    const std::vector<std::string> copies = paths_of(converted.files);
    if (std::ranges::any_of(copies, [](const std::string& path) { return path.find("/partial-") != path.npos; })) {
      log::warning("{}: the hub's Parquet copy has only the beginning of this dataset", subject_);
    }
    DatasetSplits splits =
        find_splits(copies, choose_config(converted_configs(copies), request_.data.dataset_config_name, subject_));
    return {std::move(converted), std::move(splits)};
  }

  /// Files of the repository that are wanted, at a revision.
  Snapshot take(const std::string& revision, const std::set<std::string>& wanted) const {
    SnapshotRequest request;
    request.repository = {RepositoryKind::kDataset, request_.data.dataset_name, revision, kOption};
    request.cache_dir = request_.cache_dir;
    request.select = [&wanted](const Listing& files) {
      Listing selected;
      std::ranges::copy_if(files, std::back_inserter(selected),
                           [&wanted](const ListedFile& file) { return wanted.contains(file.path); });
      return selected;
    };
    request.is_complete = [](const fs::path&, const Listing& files) {
      const std::vector<std::string> paths = paths_of(files);
      return std::ranges::any_of(paths, [](const std::string& path) { return is_data_file(path); }) &&
             has_all_shards(paths);
    };
    return fetch_snapshot(request);
  }

  /// Of a snapshot that another tool left unfinished, without a network. Where there is a listing, that says what is
  /// missing: a README may name some shards of many.
  void require_all_shards(const std::set<std::string>& wanted, const fs::path& folder) const {
    if (has_all_shards({wanted.begin(), wanted.end()})) return;
    throw Error(ExitCode::kNoInput, fmt::format("{}: some of its files are missing in {}", subject_, folder.string()),
                "unset HF_HUB_OFFLINE, or complete it with fettle download where there is a network");
  }

  [[noreturn]] void fail_split(const std::string& option, const std::string& name, const DatasetSplits& splits) const {
    std::string names;
    for (const DatasetSplit& split : splits) names += (names.empty() ? "" : ", ") + split.name;
    throw Error(ExitCode::kNoInput, fmt::format("{} has no split {}", subject_, quote(name)),
                fmt::format("give one of these as {}: {}", option, shorten(names, 300)));
  }

  DatasetSplit train_split(const DatasetSplits& splits) const {
    const std::string& given = request_.data.dataset_split;
    const std::string name = given.empty() ? "train" : config::parse_split(given, "dataset_split").name;
    const auto found = std::ranges::find(splits, name, &DatasetSplit::name);
    if (found == splits.end()) fail_split("dataset_split", name, splits);
    return *found;
  }

  std::optional<DatasetSplit> evaluation_split(const DatasetSplits& splits) const {
    const std::string& given = request_.data.dataset_test_split;
    if (!given.empty()) {
      const std::string name = config::parse_split(given, "dataset_test_split").name;
      const auto found = std::ranges::find(splits, name, &DatasetSplit::name);
      if (found == splits.end()) fail_split("dataset_test_split", name, splits);
      return *found;
    }
    const std::string& train = request_.data.dataset_split;
    const std::string trained = train.empty() ? "train" : config::parse_split(train, "dataset_split").name;
    for (const char* name : {"validation", "valid", "dev", "val", "eval", "test"}) {
      const auto found = std::ranges::find(splits, name, &DatasetSplit::name);
      if (found != splits.end() && !(request_.need_train && trained == name)) return *found;
    }
    return std::nullopt;
  }

  const DatasetRequest& request_;
  std::string subject_;
};

}  // namespace

DatasetFiles fetch_dataset(const DatasetRequest& request) {
  return DatasetFetcher(request).fetch();
}

}  // namespace fettle::hub
