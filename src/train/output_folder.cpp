// SPDX-License-Identifier: Apache-2.0
#include "train/output_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <system_error>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "config/describe.h"
#include "config/option_table.h"
#include "hub/checksums.h"
#include "hub/json.h"
#include "hub/path.h"
#include "train/checkpoint.h"
#include "train/probe.h"
#include "train/profile.h"
#include "train/save.h"
#include "train/state.h"

namespace fettle::train {
namespace fs = std::filesystem;
using nlohmann::literals::operator""_json_pointer;
namespace {

constexpr const char* kLockFile = ".lock";

/// Options of `fettle train` that change no number of the training.
const std::set<std::string_view>& free_options() {
  static const std::set<std::string_view> names = [] {
    std::set<std::string_view> found = {
        "cache_dir", "tokenizer_name", "ddp_timeout", "peer_timeout", "ddp_bucket_cap_mb", "zero_stage",
        "section_timeouts", "device", "num_threads", "fused_ops", "do_train", "do_eval", "gradient_checkpointing",
        // How often and where.
        "eval_strategy", "eval_steps", "logging_steps", "logging_first_step", "report_to", "logging_dir",
        "metrics_port", "nproc_per_node", "profile_steps", "save_strategy", "save_steps", "grad_spike_limit",
        "save_minutes", "async_save", "save_total_limit", "output_dir", "overwrite_output_dir", "max_shard_size",
        "resume_from_checkpoint", "log_level", "verify_saved_model",
        // Evaluation records and the cache of tokens.
        "per_device_eval_batch_size", "validation_file", "max_eval_samples", "preprocessing_num_workers",
        "dataset_cache_directory", "overwrite_cache"};
    // What is done with the result.
    for (const auto& options : {config::table::quantization_options(), config::table::benchmark_options()}) {
      for (const config::Option& option : options) found.insert(option.name);
    }
    return found;
  }();
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
  const auto part = [&stored](const char* name) {
    const nlohmann::json found = stored.is_object() ? stored.value(name, nlohmann::json()) : nlohmann::json();
    return found.is_object() ? found : nlohmann::json::object();
  };
  std::vector<std::string> found = differences(part("options"), current.at("options"));
  if (!stored.is_object() || stored.value("dataset", nlohmann::json()) != current.at("dataset")) {
    const std::vector<std::string> data = differences(part("data_options"), current.at("data_options"));
    found.insert(found.end(), data.begin(), data.end());
    if (data.empty()) found.emplace_back("the training records or the tokenizer");
  }
  // A branch of the hub may have moved on, and a folder been replaced. Older versions noted no weights.
  const bool has_weights = stored.is_object() && stored.contains("model") && current.contains("model");
  if (has_weights && stored["model"] != current["model"]) found.emplace_back("the base model's weights");
  return found;
}

nlohmann::json identity_in(const nlohmann::json& state) {
  return state.value("identity", nlohmann::json::object());
}

/// What is wrong with a state whose file is whole: it was edited, or the folder renamed. Empty: nothing.
std::string why_state_is_wrong(const fs::path& folder, const nlohmann::json& saved) {
  try {
    const auto state = saved.at("state").get<TrainingState>();
    const int64_t step = checkpoint_step(folder).value_or(state.step);
    if (!saved.at("state").at("step").is_number_integer() || state.step != step || step < 1) {
      return fmt::format("trainer_state.json is of step {}", saved.at("state").at("step").dump());
    }
    const bool is_possible =
        state.cursor.epoch >= 0 && state.cursor.batch >= 0 && state.batches_per_step >= 1 && state.window_steps >= 0;
    return is_possible ? "" : "trainer_state.json holds a count below 0";
  } catch (const nlohmann::json::exception&) {
    return "trainer_state.json is of another version";
  }
}

/// A checkpoint that the user named: it must be whole and belong to this run.
void require_usable(const fs::path& folder, const nlohmann::json& identity) {
  if (!fs::is_directory(folder)) {
    throw Error(ExitCode::kNoInput, fmt::format("resume_from_checkpoint: there is no folder {}", folder.string()),
                "name a checkpoint-<step> folder, or use auto or none");
  }
  const std::string reason = why_broken(folder);
  if (!reason.empty()) {
    throw Error(ExitCode::kData, fmt::format("resume_from_checkpoint: {} is broken: {}", folder.string(), reason),
                "resume from an older checkpoint, or use auto");
  }
  const nlohmann::json state = read_checkpoint_state(folder);
  require_same_run(identity_in(state), identity, folder);
  const std::string wrong = why_state_is_wrong(folder, state);
  if (!wrong.empty()) {
    throw Error(ExitCode::kData, fmt::format("resume_from_checkpoint: {}: {}", folder.string(), wrong),
                "resume from another checkpoint, or use auto");
  }
}

/// The local files and folders that a run reads.
std::vector<std::string> inputs_of(const config::Config& config) {
  std::vector<std::string> inputs = config.data.train_file;
  inputs.insert(inputs.end(), config.data.validation_file.begin(), config.data.validation_file.end());
  inputs.insert(inputs.end(), {config.data.dataset_name, config.model.model_name_or_path, config.model.config_name,
                               config.model.adapter_name_or_path, config.model.tokenizer_name});
  return inputs;
}

/// Before an earlier run is removed: none of what the new one reads may be part of it. Records and tokenizer files
/// beside it stay, and so does an adapter that is the earlier result, until the new one replaces it.
void require_inputs_elsewhere(const config::Config& config) {
  std::error_code failure;
  const fs::path folder = fs::weakly_canonical(config.output.output_dir, failure);
  for (const std::string& input : inputs_of(config)) {
    if (input.empty() || !fs::exists(input, failure)) continue;
    const fs::path inside = fs::weakly_canonical(input, failure).lexically_relative(folder);
    const std::string first = inside.empty() ? ".." : inside.begin()->string();
    const bool is_result = first == "." && input == config.model.model_name_or_path;
    if (!is_result && first != "metrics.jsonl" && !first.starts_with("checkpoint-")) continue;
    throw Error(ExitCode::kConfig,
                fmt::format("output_dir {} holds {}, which this run reads, and overwrite_output_dir would replace it",
                            config.output.output_dir, input),
                "choose another output_dir");
  }
}

/// Why a checkpoint of output_dir cannot be used; empty: it can.
std::string why_unusable(const fs::path& folder, const nlohmann::json& identity) {
  std::string reason = why_broken(folder);
  if (!reason.empty()) return "broken: " + reason;
  nlohmann::json state;
  try {
    state = read_checkpoint_state(folder);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) throw;
    return fmt::format("broken: {}", error.what());
  }
  const std::vector<std::string> different = explain_difference(identity_in(state), identity);
  if (!different.empty()) return fmt::format("of another run; different: {}", fmt::join(different, ", "));
  reason = why_state_is_wrong(folder, state);
  return reason.empty() ? "" : "broken: " + reason;
}

/// The newest usable checkpoint of output_dir; nothing if there is none at all, or if none can be used and the user
/// allowed to start over.
std::optional<fs::path> newest_usable(const config::OutputConfig& options, const nlohmann::json& identity) {
  std::vector<fs::path> folders = list_checkpoints(options.output_dir);
  std::ranges::reverse(folders);
  std::vector<std::string> reasons;
  for (const fs::path& folder : folders) {
    const std::string reason = why_unusable(folder, identity);
    if (reason.empty()) return folder;
    log::warning("{} is {}; it is skipped", folder.string(), reason);
    reasons.push_back(fmt::format("{} is {}", folder.filename().string(), reason));
  }
  if (reasons.empty() || options.overwrite_output_dir) return std::nullopt;
  throw Error(ExitCode::kData,
              fmt::format("output_dir {} holds this run unfinished and no checkpoint that can be used: {}",
                          options.output_dir, fmt::join(reasons, "; ")),
              "restore one, or set overwrite_output_dir to start over");
}

bool is_inside(const fs::path& checkpoint, const fs::path& output_dir) {
  std::error_code failure;
  return fs::equivalent(checkpoint / "..", output_dir, failure);
}

/// Whether the folder holds the adapter that training starts from.
bool starts_in_place(const config::Config& config) {
  std::error_code failure;
  return fs::equivalent(config.model.adapter_name_or_path, config.output.output_dir, failure);
}

/// The rest of an earlier run that a new one would mix with its own files.
void remove_earlier_run(const fs::path& folder, bool keeps_adapter) {
  for (const fs::path& checkpoint : list_checkpoints(folder)) fs::remove_all(checkpoint);
  for (const char* name :
       {kRunFile, "metrics.jsonl", "all_results.json", hub::kChecksumFile, kProfileFile, kTraceFile}) {
    fs::remove(folder / name);
  }
  if (keeps_adapter) return;
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json"}) fs::remove(folder / name);
}

/// run.json, or null if there is none that can be used.
nlohmann::json read_run_file(const fs::path& folder) {
  if (!fs::is_regular_file(folder / kRunFile)) return nullptr;
  nlohmann::json run;
  try {
    run = hub::parse_json_object(read_file(folder / kRunFile), kRunFile);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) throw;
  }
  const nlohmann::json identity = run.is_object() ? run.value("identity", nlohmann::json()) : nlohmann::json();
  return identity.is_object() && identity.value("data_options", nlohmann::json::object()).is_object()
             ? run
             : nlohmann::json();
}

bool is_finished(const nlohmann::json& run) {
  return run.is_object() && run.value("finished", nlohmann::json()) == true;
}

/// A finished run that goes on from one of its earlier checkpoints loses what came after it.
void require_unfinished(const config::OutputConfig& options, const nlohmann::json& run) {
  if (options.overwrite_output_dir || !is_finished(run)) return;
  throw Error(ExitCode::kConfig,
              fmt::format("output_dir {} holds this run complete; going back to {} would remove what came after",
                          options.output_dir, options.resume_from_checkpoint),
              "give a copy of that checkpoint and another output_dir, or set overwrite_output_dir");
}

bool is_same_run(const nlohmann::json& run, const nlohmann::json& identity) {
  return run.is_object() && explain_difference(run["identity"], identity).empty();
}

[[noreturn]] void refuse_folder(const fs::path& folder, const nlohmann::json& run, const nlohmann::json& identity) {
  const std::string hint = "choose another output_dir, or set overwrite_output_dir to replace what is there";
  if (run.is_null()) {
    throw Error(ExitCode::kConfig,
                fmt::format("output_dir {} is not empty and holds no run of Fettle", folder.string()), hint);
  }
  require_same_run(run["identity"], identity, folder);
  throw Error(ExitCode::kConfig,
              fmt::format("output_dir {} holds this run already, and resume_from_checkpoint is none", folder.string()),
              hint);
}

void write_run_file(const fs::path& output_dir, const nlohmann::json& identity, bool finished) {
  write_file(output_dir / kRunFile,
             nlohmann::ordered_json{{"finished", finished}, {"identity", identity}}.dump(2) + '\n');
}

/// Whether a checkpoint says that it is of this run. It may be broken.
bool claims_run(const fs::path& checkpoint, const nlohmann::json& identity) {
  try {
    return explain_difference(identity_in(read_checkpoint_state(checkpoint)), identity).empty();
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData && error.code() != ExitCode::kNoInput) throw;
    return false;
  }
}

/// Whether a whole checkpoint in the folder is of this run: then it is this run's folder, though run.json is damaged.
/// Those of other runs are not hashed, which may be terabytes.
bool holds_own_checkpoint(const fs::path& folder, const nlohmann::json& identity) {
  return std::ranges::any_of(list_checkpoints(folder), [&identity](const fs::path& each) {
    return claims_run(each, identity) && why_broken(each).empty();
  });
}

}  // namespace

nlohmann::json run_identity(const config::Config& config, const std::string& dataset_fingerprint,
                            const std::string& model_fingerprint) {
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
  nlohmann::json identity = {{"options", options}, {"data_options", data_options}, {"dataset", dataset_fingerprint}};
  if (!model_fingerprint.empty()) identity["model"] = model_fingerprint;
  return identity;
}

void require_same_run(const nlohmann::json& stored, const nlohmann::json& current, const fs::path& place) {
  const std::vector<std::string> found = explain_difference(stored, current);
  if (found.empty()) return;
  throw Error(ExitCode::kConfig,
              fmt::format("{} holds another run; different: {}", place.string(), fmt::join(found, ", ")),
              "give this run its own output_dir, or set overwrite_output_dir to start again there");
}

StartingPoint find_starting_point(const config::Config& config, const nlohmann::json& identity) {
  const config::OutputConfig& options = config.output;
  const fs::path folder = options.output_dir;
  const std::string& resume = options.resume_from_checkpoint;
  StartingPoint start;
  if (resume != "auto" && resume != "none") {
    start.checkpoint = resume;
    require_usable(resume, identity);
    if (is_inside(resume, folder)) {
      require_unfinished(options, read_run_file(folder));
      start.keeps_folder = true;
      return start;
    }
  }
  if (is_empty_folder(folder)) return start;
  const nlohmann::json run = read_run_file(folder);
  bool same = is_same_run(run, identity);
  if (!same && resume == "auto" && holds_own_checkpoint(folder, identity)) {
    log::warning("{} is missing or damaged; the checkpoints beside it are this run's", (folder / kRunFile).string());
    same = true;
  }
  if (same && start.checkpoint) {
    require_unfinished(options, run);
    start.keeps_folder = true;
    return start;
  }
  if (same && resume == "auto") {
    const bool finished = is_finished(run);
    if (finished && options.overwrite_output_dir) {
      require_inputs_elsewhere(config);
      return {};
    }
    if (finished && has_result(folder, config.lora.use_peft)) return {.finished = true};
    if (finished) log::warning("the run in {} is complete, but its result is gone: it continues", folder.string());
    start.checkpoint = newest_usable(options, identity);
    start.keeps_folder = start.checkpoint.has_value();
    if (!start.keeps_folder) require_inputs_elsewhere(config);
    return start;
  }
  if (!options.overwrite_output_dir) refuse_folder(folder, run, identity);
  require_inputs_elsewhere(config);
  return start;
}

std::string noted_template_date(const config::OutputConfig& options) {
  const std::string& resume = options.resume_from_checkpoint;
  if (resume == "none") return {};
  nlohmann::json run;
  if (resume == "auto") {
    run = read_run_file(options.output_dir);
  } else if (fs::is_directory(resume)) {
    try {
      run = read_checkpoint_state(resume);
    } catch (const Error&) {  // find_starting_point will say what is wrong
      return {};
    }
  }
  const auto pointer = "/identity/data_options/template_date"_json_pointer;
  const nlohmann::json noted = run.contains(pointer) ? run.at(pointer) : nlohmann::json();
  return noted.is_string() ? noted.get<std::string>() : std::string();
}

void begin_run(const config::Config& config, const nlohmann::json& identity, const StartingPoint& start) {
  const fs::path folder = config.output.output_dir;
  make_directories(folder);
  remove_stale_temporaries(folder);
  fs::remove(folder / kProbeFile);  // of what the run will replace
  if (!start.keeps_folder) remove_earlier_run(folder, starts_in_place(config));
  write_run_file(folder, identity, false);
}

void finish_run(const fs::path& output_dir, const nlohmann::json& identity) {
  write_run_file(output_dir, identity, true);
}

FolderLock::FolderLock(const fs::path& folder) {
  make_directories(folder);
  lock_.emplace(folder / kLockFile);
  if (lock_->try_lock()) return;
  throw Error(ExitCode::kUnavailable, fmt::format("another process is at work in output_dir {}", folder.string()),
              "wait until it ends, or give this run its own output_dir");
}

void require_in_place(const fs::path& output_dir) {
  if (holds_run(output_dir)) return;
  throw Error(ExitCode::kIo,
              fmt::format("output_dir {} no longer holds this run: its volume was unmounted, or the folder was removed",
                          output_dir.string()),
              "mount it again and run the same command");
}

bool holds_run(const fs::path& folder) {
  std::error_code failure;
  return fs::exists(folder / kRunFile, failure);
}

bool is_empty_folder(const fs::path& folder) {
  if (!hub::path_exists(folder)) return true;
  for (const fs::path& entry : hub::list_folder(folder)) {
    const std::string name = entry.filename().string();
    if (name != "lost+found" && !name.starts_with('.')) return false;
  }
  return true;
}

fs::path event_folder(const config::Config& config) {
  const std::string& folder = config.training.logging_dir;
  return folder.empty() ? fs::path(config.output.output_dir) / "runs" : fs::path(folder);
}

}  // namespace fettle::train
