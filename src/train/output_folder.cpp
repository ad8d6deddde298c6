// SPDX-License-Identifier: Apache-2.0
#include "train/output_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <set>
#include <system_error>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "config/describe.h"
#include "config/option_table.h"
#include "train/checkpoint.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

constexpr const char* kRunFile = "run.json";

/// Options of `fettle train` that change no number of the training.
const std::set<std::string_view>& free_options() {
  static const std::set<std::string_view> names = {
      "cache_dir", "tokenizer_name", "device", "num_threads", "do_train", "do_eval", "gradient_checkpointing",
      // How often and where.
      "eval_strategy", "eval_steps", "logging_steps", "logging_first_step", "save_strategy", "save_steps",
      "save_total_limit", "output_dir", "overwrite_output_dir", "max_shard_size", "resume_from_checkpoint", "log_level",
      "verify_saved_model",
      // Evaluation records and the cache of tokens.
      "per_device_eval_batch_size", "validation_file", "max_eval_samples", "preprocessing_num_workers",
      "dataset_cache_directory", "overwrite_cache"};
  return names;
}

/// Options that act through the tokens they make: the data section, but for those that also decide the order of
/// training.
bool counts_through_dataset(std::string_view name) {
  static const std::set<std::string_view> names = [] {
    std::set<std::string_view> found;
    for (const config::Section& section : config::sections()) {
      std::set<std::string_view> in_section;
      for (const config::Option& option : section.options) in_section.insert(option.name);
      if (in_section.contains("train_file")) found.merge(in_section);
    }
    for (const char* ordering : {"max_seq_length", "packing", "shuffle"}) found.erase(ordering);
    return found;
  }();
  return names.contains(name);
}

bool is_adaptive(const config::TrainingConfig& training) {
  return training.lr_scheduler_type == "reduce_lr_on_plateau" || training.lr_scheduler_type == "greedy";
}

/// "learning_rate (0.001 there, 0.002 here)" for every key whose values differ.
std::vector<std::string> differences(const nlohmann::json& stored, const nlohmann::json& current) {
  std::vector<std::string> found;
  for (const auto& [name, value] : current.items()) {
    const nlohmann::json before = stored.value(name, nlohmann::json());
    if (before != value) found.push_back(fmt::format("{} ({} there, {} here)", name, before.dump(), value.dump()));
  }
  return found;
}

/// What differs between two identities; empty: they are the same run.
std::vector<std::string> explain_difference(const nlohmann::json& stored, const nlohmann::json& current) {
  const auto part = [&stored](const char* name) { return stored.value(name, nlohmann::json::object()); };
  std::vector<std::string> found = differences(part("options"), current.at("options"));
  if (stored.value("dataset", std::string()) != current.at("dataset")) {
    const std::vector<std::string> data = differences(part("data_options"), current.at("data_options"));
    found.insert(found.end(), data.begin(), data.end());
    if (data.empty()) found.emplace_back("the training records or the tokenizer");
  }
  return found;
}

/// Whether the folder holds nothing but what volumes put there themselves.
bool is_empty_folder(const fs::path& folder) {
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, failure)) {
    const std::string name = entry.path().filename().string();
    if (name != "lost+found" && !name.starts_with('.')) return false;
  }
  return true;
}

/// A checkpoint that the user named: it must be whole and belong to this run.
StartingPoint named_checkpoint(const fs::path& folder, const nlohmann::json& identity) {
  if (!fs::is_directory(folder)) {
    throw Error(ExitCode::kNoInput, fmt::format("resume_from_checkpoint: there is no folder {}", folder.string()),
                "name a checkpoint-<step> folder, or use auto or none");
  }
  const std::string reason = why_broken(folder);
  if (!reason.empty()) {
    throw Error(ExitCode::kData, fmt::format("resume_from_checkpoint: {} is broken: {}", folder.string(), reason),
                "resume from an older checkpoint, or use auto");
  }
  require_same_run(read_checkpoint_state(folder).value("identity", nlohmann::json::object()), identity, folder);
  return {.checkpoint = folder};
}

/// The rest of an earlier run that a new one would mix with its own files.
void remove_earlier_run(const fs::path& folder) {
  for (const fs::path& checkpoint : list_checkpoints(folder)) fs::remove_all(checkpoint);
  for (const char* name :
       {kRunFile, "metrics.jsonl", "all_results.json", "adapter_model.safetensors", "adapter_config.json"}) {
    fs::remove(folder / name);
  }
}

/// run.json, or null if there is none that can be used.
nlohmann::json read_run_file(const fs::path& folder) {
  if (!fs::is_regular_file(folder / kRunFile)) return nullptr;
  const nlohmann::json run = nlohmann::json::parse(read_file(folder / kRunFile), nullptr, false);
  return run.is_object() && run.value("identity", nlohmann::json()).is_object() ? run : nlohmann::json();
}

bool is_same_run(const nlohmann::json& run, const nlohmann::json& identity) {
  return run.is_object() && explain_difference(run["identity"], identity).empty();
}

void write_run_file(const fs::path& output_dir, const nlohmann::json& identity, bool finished) {
  write_file(output_dir / kRunFile,
             nlohmann::ordered_json{{"finished", finished}, {"identity", identity}}.dump(2) + '\n');
}

}  // namespace

nlohmann::json run_identity(const config::Config& config, const std::string& dataset_fingerprint) {
  nlohmann::json options = nlohmann::json::object();
  nlohmann::json data_options = nlohmann::json::object();
  const nlohmann::ordered_json all = config::to_json(config);
  for (const auto& [name, value] : all.items()) {
    const config::Option* option = config::find_option(name);
    if (option == nullptr || !option->used_by(config::Command::kTrain)) continue;
    const bool evaluation = name == "eval_strategy" || name == "eval_steps";
    if (free_options().contains(name) && !(evaluation && is_adaptive(config.training))) continue;
    (counts_through_dataset(name) ? data_options : options)[name] = value;
  }
  return {{"options", options}, {"data_options", data_options}, {"dataset", dataset_fingerprint}};
}

void require_same_run(const nlohmann::json& stored, const nlohmann::json& current, const fs::path& place) {
  const std::vector<std::string> found = explain_difference(stored, current);
  if (found.empty()) return;
  throw Error(ExitCode::kConfig,
              fmt::format("{} holds another run; different: {}", place.string(), fmt::join(found, ", ")),
              "give this run its own output_dir, or set overwrite_output_dir to start again there");
}

StartingPoint find_starting_point(const config::OutputConfig& options, const nlohmann::json& identity) {
  const fs::path folder = options.output_dir;
  const std::string& resume = options.resume_from_checkpoint;
  if (resume != "auto" && resume != "none") return named_checkpoint(resume, identity);
  if (is_empty_folder(folder)) return {};
  const std::string hint = "choose another output_dir, or set overwrite_output_dir to replace what is there";
  const nlohmann::json run = read_run_file(folder);
  if (resume == "auto" && is_same_run(run, identity)) {
    if (!run.value("finished", false)) return {.checkpoint = newest_checkpoint(folder)};
    if (!options.overwrite_output_dir) return {.finished = true};
  }
  if (options.overwrite_output_dir) return {};
  if (run.is_null()) {
    throw Error(ExitCode::kConfig,
                fmt::format("output_dir {} is not empty and holds no run of Fettle", folder.string()), hint);
  }
  require_same_run(run["identity"], identity, folder);
  throw Error(ExitCode::kConfig,
              fmt::format("output_dir {} holds this run already, and resume_from_checkpoint is none", folder.string()),
              hint);
}

void begin_run(const config::OutputConfig& options, const nlohmann::json& identity, const StartingPoint& start) {
  const fs::path folder = options.output_dir;
  make_directories(folder);
  if (::access(folder.c_str(), W_OK) != 0) throw_system_error("write to output_dir", folder, errno);
  remove_stale_temporaries(folder);
  if (!start.checkpoint) remove_earlier_run(folder);
  write_run_file(folder, identity, false);
}

void finish_run(const fs::path& output_dir, const nlohmann::json& identity) {
  write_run_file(output_dir, identity, true);
}

}  // namespace fettle::train
