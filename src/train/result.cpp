// SPDX-License-Identifier: Apache-2.0
#include "train/result.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.h"
#include "base/log.h"
#include "device/device.h"
#include "train/model_card.h"

namespace fettle::train {

void write_results(const config::Config& config, const TrainingState& state, const Evaluations& evaluations,
                   at::Device device) {
  const auto& [before, after] = evaluations;
  nlohmann::ordered_json results = {{"train_loss", state.loss_sum / static_cast<double>(state.step)},
                                    {"train_runtime", state.seconds},
                                    {"train_tokens", state.tokens},
                                    {"train_target_tokens", state.target_tokens},
                                    {"train_tokens_per_second", static_cast<double>(state.tokens) / state.seconds},
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
  results["peak_memory_bytes"] = device::peak_memory_bytes(device);
  const std::filesystem::path folder = config.output.output_dir;
  write_file(folder / "README.md", model_card(config, results));
  write_file(folder / "all_results.json", results.dump(2) + '\n');
}

void announce_result(const config::Config& config) {
  const bool adapter = config.lora.use_peft;
  const std::string folder = config.output.output_dir;
  std::string model = "--model_name_or_path=" + (adapter ? config.model.model_name_or_path : folder);
  if (adapter) model += " --adapter_name_or_path=" + folder;
  if (adapter && !config.model.tokenizer_name.empty()) model += " --tokenizer_name=" + config.model.tokenizer_name;
  if (adapter) model += quantization_arguments(config.model);
  log::info("the {} is in {}", adapter ? "adapter" : "model", folder);
  log::info("try it: fettle generate {} --prompt=\"...\"", model);
}

}  // namespace fettle::train
