// SPDX-License-Identifier: Apache-2.0
#include "train/result.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/termination_message.h"
#include "base/watchdog.h"
#include "device/device.h"
#include "hub/checksums.h"
#include "hub/json.h"
#include "hub/path.h"
#include "train/model_card.h"
#include "train/output_folder.h"

namespace fettle::train {
namespace {

/// "; steps 120, train_loss 1.2345 …", from all_results.json.
std::string numbers(const std::filesystem::path& folder) {
  std::string text;
  if (!hub::is_file(folder / kResultsFile)) return text;
  const nlohmann::json results = hub::read_json_object(folder / kResultsFile);
  for (const char* name : {"steps", "train_loss", "eval_loss", "eval_perplexity"}) {
    if (results.contains(name)) text += fmt::format("{} {} {}", text.empty() ? ";" : ",", name, results[name].dump());
  }
  return text;
}

/// All but what says how the run stands, and what has a manifest of its own.
std::vector<std::filesystem::path> result_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files = hub::files_below(folder);
  std::erase_if(files, [&folder](const std::filesystem::path& file) {
    const std::string first = file.begin()->string();
    const bool has_own = file.has_parent_path() && hub::is_file(folder / first / hub::kChecksumFile);
    return first == kRunFile || first.starts_with("checkpoint-") || has_own;
  });
  return files;
}

/// Without the steps of the warm-up, unless there were no others.
double tokens_per_second(const TrainingState& state) {
  const bool has_others = state.seconds > state.warmup_seconds;
  return static_cast<double>(state.tokens - (has_others ? state.warmup_tokens : 0)) /
         (state.seconds - (has_others ? state.warmup_seconds : 0));
}

}  // namespace

void write_results(const config::Config& config, const TrainingState& state, const Evaluations& evaluations,
                   at::Device device) {
  const auto& [before, after] = evaluations;
  nlohmann::ordered_json results = {{"train_loss", state.loss_sum / static_cast<double>(state.step)},
                                    {"train_runtime", state.seconds},
                                    {"train_tokens", state.tokens},
                                    {"train_target_tokens", state.target_tokens},
                                    {"train_tokens_per_second", tokens_per_second(state)},
                                    {"epoch", state.epoch},
                                    {"steps", state.step}};
  if (before) {
    results["eval_loss_before"] = before->loss;
    results["eval_perplexity_before"] = before->perplexity();
  }
  if (after) {
    results["eval_loss"] = after->loss;
    results["eval_perplexity"] = after->perplexity();
    results["eval_target_tokens"] = after->target_tokens;
    results["eval_records"] = after->records;
  }
  if (const int64_t peak = device::peak_memory_bytes(device); peak > 0) results["peak_memory_bytes"] = peak;
  const std::filesystem::path folder = config.output.output_dir;
  write_file(folder / "README.md", model_card(config, results));
  write_file(folder / kResultsFile, results.dump(2) + '\n');
  const SectionMark hashing(Section::kSave, hub::kChecksumFile);
  write_manifest(folder);
}

void write_manifest(const std::filesystem::path& folder) {
  hub::write_checksums(folder, result_files(folder));
}

void announce_result(const config::Config& config) {
  const bool adapter = config.lora.use_peft;
  const std::string folder = config.output.output_dir;
  std::string model = "--model_name_or_path=" + (adapter ? config.model.model_name_or_path : folder);
  if (adapter && config.model.model_revision != "main") model += " --model_revision=" + config.model.model_revision;
  if (!config.model.cache_dir.empty()) model += " --cache_dir=" + config.model.cache_dir;
  if (adapter) model += " --adapter_name_or_path=" + folder;
  if (adapter && !config.model.tokenizer_name.empty()) model += " --tokenizer_name=" + config.model.tokenizer_name;
  if (adapter) model += quantization_arguments(config.model);
  const std::string where = fmt::format("the {} is in {}", adapter ? "adapter" : "model", folder);
  write_termination_message(fmt::format("complete: {}{}\n", where, numbers(folder)));
  log::info("{}", where);
  log::info("try it: fettle generate {}{}", model, prompt_arguments(config.data));
}

}  // namespace fettle::train
