// SPDX-License-Identifier: Apache-2.0
#include "train/memory_remedies.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

namespace fettle::train {

std::string memory_remedies(const config::Config& config) {
  const config::TrainingConfig& training = config.training;
  const int64_t batch = training.per_device_train_batch_size;
  const int64_t half = (batch + 1) / 2;
  std::vector<std::string> remedies;  // by what they cost: the first changes neither speed nor result
  if (batch > 1) {
    remedies.push_back(fmt::format("per_device_train_batch_size={} with gradient_accumulation_steps={}", half,
                                   training.gradient_accumulation_steps * ((batch + half - 1) / half)));
  }
  if (training.do_eval && training.per_device_eval_batch_size > half) {
    remedies.push_back(fmt::format("per_device_eval_batch_size={}", half));
  }
  if (!config.lora.use_peft && training.async_save) remedies.emplace_back("async_save=false");
  if (!training.gradient_checkpointing) remedies.emplace_back("gradient_checkpointing=true (slower)");
  if (!training.bf16) remedies.emplace_back("bf16=true");
  if (config.lora.use_peft && config.distributed.zero_stage < 3 && !config.model.load_in_4bit) {
    remedies.emplace_back("load_in_4bit=true (less exact)");
  }
  if (!config.lora.use_peft) remedies.emplace_back("use_peft=true (LoRA)");
  remedies.push_back(
      fmt::format("max_seq_length={} (longer records are cut off)", (config.data.max_seq_length + 1) / 2));
  remedies.emplace_back("a smaller model");
  remedies.resize(3);
  return fmt::format("try, cheapest first: {}", fmt::join(remedies, "; "));
}

}  // namespace fettle::train
