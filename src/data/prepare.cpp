// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <unordered_set>

#include "base/environment.h"
#include "base/error.h"
#include "base/file.h"
#include "base/file_lock.h"
#include "base/hash.h"
#include "base/log.h"
#include "data/batch.h"
#include "data/build.h"
#include "data/dataset.h"
#include "data/document_hash.h"
#include "data/files.h"
#include "data/permutation.h"
#include "data/prompt.h"
#include "data/storage.h"

namespace fettle::data {
namespace fs = std::filesystem;
namespace {

using config::DataConfig;
using StoragePointer = std::shared_ptr<TokenDataset::Storage>;

/// Change it when the same records and options give other tokens or counts than before: older caches are then left
/// alone.
constexpr int kPreparationVersion = 2;
constexpr uint64_t kSplitStream = 0x53504C4954;  // apart from the streams of training orders

/// Empty where there is no home.
fs::path cache_folder(const DataConfig& config) {
  if (!config.dataset_cache_directory.empty()) return config.dataset_cache_directory;
  return fettle::cache_folder();
}

std::string file_hash(const fs::path& path) {
  Sha256 hash;
  update_from_file(hash, path);
  return hash.finish();
}

/// Everything that decides the tokens of a split. Worker counts, paths and the cache's own options do not.
std::string fingerprint_of(const SplitPlan& plan, const DataConfig& c, const PromptBuilder& prompts,
                           const text::Tokenizer& tokenizer) {
  nlohmann::json key = {{"version", kPreparationVersion}, {"tokenizer", tokenizer.fingerprint()}};
  for (const fs::path& file : plan.files) key["files"].push_back({file.extension().string(), file_hash(file)});
  key["members"] = plan.members.empty() ? "" : sha256(std::string(plan.members.begin(), plan.members.end()));
  key["limit"] = plan.limit;
  key["format"] = {c.dataset_format, c.sample_by, c.on_bad_record};
  key["columns"] = {c.instruction_column, c.input_column,    c.output_column,        c.prompt_column,
                    c.completion_column,  c.messages_column, c.conversations_column, c.text_column};
  key["template"] = {prompts.template_name(), prompts.template_source(), c.prompt_template == "auto",
                     c.prompt_with_input, c.prompt_without_input};
  if (!prompts.template_date().empty()) key["date"] = prompts.template_date();
  key["targets"] = {c.completion_only_loss, c.mask_history};
  key["length"] = {c.max_seq_length, c.packing && c.packing_strategy == "bfd_split"};
  return sha256(key.dump());
}

/// Held while a split is looked for in the cache or made: of the processes of a machine that want the same one, one
/// makes it and the others find it.
class CacheLock {
 public:
  CacheLock(const fs::path& cache, const std::string& split) {
    if (cache.empty()) return;
    try {
      make_directories(cache.parent_path());
      lock_.emplace(fs::path(cache).replace_extension(".lock"));
    } catch (const Error&) {  // what prevents the lock prevents the cache, which says so
      return;
    }
    if (!lock_->try_lock()) {
      log::info("{}: waiting for another process that prepares the same records", split);
      waited_ = lock_->lock_unless_silent(kSilence);
      if (!waited_) {
        log::warning("{}: the process that prepares the same records does not answer; this one prepares them too",
                     split);
        return;
      }
    }
    beat_ = std::jthread([this](const std::stop_token& stop) {
      std::mutex mutex;
      std::unique_lock hold(mutex);
      while (!stop.stop_requested()) {
        lock_->touch();
        ended_.wait_for(hold, stop, std::chrono::seconds(1), [] { return false; });
      }
    });
  }
  /// Whether another process had it: what is in the cache now is as new as can be.
  [[nodiscard]] bool waited() const { return waited_; }

 private:
  /// A holder that shows no life for so long is stopped or lost; the lock only saves work.
  static constexpr std::chrono::seconds kSilence{20};

  std::optional<FileLock> lock_;
  bool waited_ = false;
  std::condition_variable_any ended_;
  std::jthread beat_;  // the last member: it uses the others
};

/// The cached split, or none. A file that cannot be trusted is reported and then made anew.
StoragePointer from_cache(const fs::path& path, const std::string& fingerprint) {
  if (path.empty()) return nullptr;
  try {
    return read_cache(path, fingerprint);
  } catch (const std::exception& error) {
    log::warning("token cache not used: {}", error.what());
    return nullptr;
  }
}

/// Writes a split and maps it, so that its memory can be given back; where that fails it stays in memory.
StoragePointer into_cache(const fs::path& path, StoragePointer storage) {
  if (path.empty()) return storage;
  try {
    write_cache(path, *storage);
    if (auto mapped = read_cache(path, storage->fingerprint)) return mapped;
  } catch (const Error& error) {
    log::warning("token cache not written, the data stays in memory: {}", error.what());
  }
  return storage;
}

std::string joined(const std::map<std::string, int64_t>& reasons) {
  std::string text;
  for (const auto& [reason, count] : reasons) text += fmt::format("{}{} × {}", text.empty() ? "" : ", ", reason, count);
  return text;
}

double percent(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

void report(const std::string& split, const Preparation& p, const DataConfig& config) {
  log::info("{}: {} records → {} documents, {} tokens (longest {}), {} targets ({:.1f} %)", split, p.records,
            p.documents, p.tokens, p.longest, p.target_tokens, percent(p.target_tokens, p.tokens));
  if (p.dropped > 0) log::warning("{}: {} records dropped: {}", split, p.dropped, joined(p.dropped_why));
  if (p.truncated > 0) {
    log::warning("{}: {} documents cut off at max_seq_length {}", split, p.truncated, config.max_seq_length);
  }
  if (p.dropped_pieces > 0) {
    log::warning("{}: {} pieces of long records have no target tokens and are left out", split, p.dropped_pieces);
  }
  if (p.duplicates > 0)
    log::info("{}: {} documents are duplicates of earlier ones; they are kept", split, p.duplicates);
  const double ended = percent(p.ended, p.documents);
  log::info("{}: the end mark is a target in {:.1f} % of the documents", split, ended);
  if (ended < 50)
    log::warning("{}: the model may not learn to stop; see what fettle preprocess shows as targets", split);
  if (config.packing) {
    log::info("{}: packed into rows of {} tokens, {:.1f} % full", split, config.max_seq_length,
              100 * p.packing_efficiency);
  }
}

/// Tokenizes one split or finds it in the cache, and reports on it.
class Preparer {
 public:
  Preparer(const DataConfig& config, const text::Tokenizer& tokenizer)
      : config_(config), tokenizer_(tokenizer), prompts_(config, tokenizer), folder_(cache_folder(config)) {}

  TokenDataset prepare(const SplitPlan& plan) {
    const auto start = std::chrono::steady_clock::now();
    const std::string fingerprint = fingerprint_of(plan, config_, prompts_, tokenizer_);
    const fs::path path = folder_.empty() ? fs::path() : folder_ / fmt::format("{}.tokens", fingerprint.substr(0, 32));
    const CacheLock lock(path, plan.name);
    StoragePointer storage = config_.overwrite_cache && !lock.waited() ? nullptr : from_cache(path, fingerprint);
    if (storage) {
      log::info("{}: tokens from the cache {}", plan.name, path.string());
    } else {
      const int64_t spelled = prompts_.spelled_marks();
      storage = into_cache(path, build_split(plan, config_, prompts_, fingerprint));
      log_speed(plan, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      if (prompts_.spelled_marks() > spelled) {
        log::warning("{}: {} texts spell the tokenizer's EOS; it stays ordinary text there", plan.name,
                     prompts_.spelled_marks() - spelled);
      }
    }
    if (config_.packing) {  // not cached: the tokens do not depend on it
      const OrderOptions order{config_.max_seq_length, true, false, 0, 1};
      storage->preparation.packing_efficiency = BatchOrder(TokenDataset(storage), order, 0).packing_efficiency();
    }
    report(plan.name, storage->preparation, config_);
    return TokenDataset(std::move(storage));
  }

 private:
  static void log_speed(const SplitPlan& plan, double seconds) {
    double megabytes = 0;
    for (const auto& file : plan.files) megabytes += static_cast<double>(fs::file_size(file)) / 1e6;
    log::info("{}: {:.1f} MB prepared in {:.2f} s ({:.1f} MB/s)", plan.name, megabytes, seconds,
              megabytes / std::max(seconds, 1e-9));
  }

  const DataConfig& config_;
  const text::Tokenizer& tokenizer_;
  PromptBuilder prompts_;
  fs::path folder_;
};

/// The records that validation_split_percentage takes out of training: a fixed share, drawn by dataset_seed.
/// `among`: the records that are used at all; empty: every one.
std::vector<bool> validation_members(const DataFiles& files, const std::vector<bool>& among, const DataConfig& config) {
  const double share = config.validation_split_percentage;
  const double fraction = share >= 1 ? share / 100 : share;
  if (fraction >= 1)
    throw Error(ExitCode::kConfig, "validation_split_percentage leaves nothing to train on", "lower it");
  std::vector<size_t> places;  // of the records that are used
  for (size_t i = 0; i < among.size(); ++i) {
    if (among[i]) places.push_back(i);
  }
  const int64_t records = among.empty() ? count_records(files.train, config) : static_cast<int64_t>(places.size());
  if (records < 2) {
    throw Error(ExitCode::kData, fmt::format("{} record cannot be split into training and validation", records),
                "set validation_split_percentage to 0 or name a validation_file");
  }
  const auto wanted = static_cast<int64_t>(std::llround(fraction * static_cast<double>(records)));
  const int64_t size = std::clamp<int64_t>(wanted, 1, records - 1);
  const auto order = permutation(records, static_cast<uint64_t>(config.dataset_seed), kSplitStream);
  std::vector<bool> members(among.empty() ? static_cast<size_t>(records) : among.size(), false);
  for (int64_t i = 0; i < size; ++i) {
    const auto drawn = static_cast<size_t>(order[static_cast<size_t>(i)]);
    members[among.empty() ? drawn : places[drawn]] = true;
  }
  return members;
}

void warn_of_overlap(const TokenDataset& train, const TokenDataset& validation) {
  std::unordered_set<uint64_t> trained;
  for (int64_t i = 0; i < train.size(); ++i) trained.insert(document_hash(train.input_ids(i), train.labels(i)));
  int64_t overlap = 0;
  for (int64_t i = 0; i < validation.size(); ++i) {
    overlap += static_cast<int64_t>(trained.count(document_hash(validation.input_ids(i), validation.labels(i))));
  }
  if (overlap == 0) return;
  log::warning("{} of {} validation documents are in the training data too: the evaluation flatters the model", overlap,
               validation.size());
}

struct Plans {
  SplitPlan train;
  std::optional<SplitPlan> validation;
};

/// The records of a part of a split, or empty for all of it.
std::vector<bool> slice_members(const std::vector<fs::path>& files, const std::optional<config::SplitExpression>& slice,
                                const DataConfig& config) {
  if (!slice) return {};
  const int64_t records = count_records(files, config);
  const config::RecordRange range = slice_range(*slice, records);
  std::vector<bool> members(static_cast<size_t>(records), false);
  std::fill(members.begin() + range.begin, members.begin() + range.end, true);
  return members;
}

Plans plan_splits(const DataConfig& config, bool need_train, const std::string& cache_dir) {
  const bool holds_out = config.validation_split_percentage > 0;
  const DataFiles files = find_files(config, need_train || holds_out ? Needed::kBoth : Needed::kEvaluation, cache_dir);
  Plans plans{{"train", files.train, {}, config.max_train_samples}, std::nullopt};
  if (need_train || holds_out) plans.train.members = slice_members(files.train, files.train_slice, config);
  if (!files.validation.empty()) {
    plans.validation =
        SplitPlan{"validation", files.validation, slice_members(files.validation, files.validation_slice, config),
                  config.max_eval_samples};
  } else if (holds_out) {
    const auto members = validation_members(files, plans.train.members, config);
    plans.validation = SplitPlan{"validation", files.train, members, config.max_eval_samples};
    if (plans.train.members.empty()) plans.train.members.assign(members.size(), true);
    for (size_t i = 0; i < members.size(); ++i) plans.train.members[i] = plans.train.members[i] && !members[i];
  }
  return plans;
}

}  // namespace

PreparedData prepare(const DataConfig& config, const text::Tokenizer& tokenizer, bool need_train,
                     const std::string& cache_dir) {
  const Plans plans = plan_splits(config, need_train, cache_dir);
  if (need_train && plans.train.files.empty()) {
    throw Error(ExitCode::kConfig, "no training data", "set train_file, or dataset_name to a folder with train.*");
  }
  if (!need_train && !plans.validation) {
    throw Error(ExitCode::kConfig, "nothing to evaluate", "set validation_file or validation_split_percentage");
  }
  Preparer preparer(config, tokenizer);
  PreparedData data{need_train ? preparer.prepare(plans.train) : TokenDataset::from_examples({}), std::nullopt};
  if (plans.validation) data.validation = preparer.prepare(*plans.validation);
  if (need_train && data.validation) warn_of_overlap(data.train, *data.validation);
  return data;
}

}  // namespace fettle::data
