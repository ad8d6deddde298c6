// SPDX-License-Identifier: Apache-2.0
#include "train/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "device/device.h"
#include "hub/adapter.h"
#include "model/lora_targets.h"
#include "model/weights.h"
#include "train/memory_plan.h"
#include "train/memory_remedies.h"
#include "train/output_folder.h"
#include "train/save.h"
#include "train/steps.h"
#include "train/training_inputs.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

std::string gigabytes(double bytes) {
  return fmt::format("{:.2f} GB", bytes / 1e9);
}

void print(std::string_view name, const std::string& text) {
  fmt::print("{:<8}{}\n", name, text);
}

int64_t trained_weights(const TrainingInputs& inputs) {
  const config::Config& config = inputs.config;
  const model::DecoderSpec& spec = inputs.model.spec;
  if (!config.lora.use_peft) return model::parameter_count(spec);
  const std::string& adapter = config.model.adapter_name_or_path;
  return model::lora_weight_count(spec, adapter.empty() ? model::adapter_config(config.lora)
                                                        : hub::read_adapter_config(hub::resolve_folder(
                                                              adapter, config.model, "adapter_name_or_path")));
}

int64_t largest_batch(const data::BatchOrder& order, const data::TokenDataset& dataset) {
  int64_t most = 0;
  for (int64_t i = 0; i < order.batches(); ++i) {
    int64_t tokens = 0;
    for (const int64_t document : order.documents(i)) tokens += dataset.length(document);
    most = std::max(most, tokens);
  }
  return most;
}

void print_start(const TrainingInputs& inputs) {
  const std::string& folder = inputs.config.output.output_dir;
  const StartingPoint start =
      find_starting_point(inputs.config, run_identity(inputs.config, inputs.data.train.fingerprint()));
  if (start.finished) {
    print("output", fmt::format("{}: this run is complete already", folder));
  } else if (start.checkpoint) {
    print("output", fmt::format("{}: continues from {}", folder, start.checkpoint->string()));
  } else {
    print("output", fmt::format("{}: starts at the first step", folder));
  }
}

void print_records(const char* name, const data::TokenDataset& dataset) {
  const data::Preparation& facts = dataset.preparation();
  print(name, fmt::format("{} records, {} documents, {} tokens (longest {}), {:.1f} % of them targets", facts.records,
                          facts.documents, facts.tokens, facts.longest,
                          100.0 * static_cast<double>(facts.target_tokens) / static_cast<double>(facts.tokens)));
}

/// `here`: processes of this machine.
void require_memory(const TrainingInputs& inputs, const PlannedRun& run, int64_t here) {
  const MemoryPlan plan = plan_memory(inputs.model.spec, inputs.config, run);
  const double needed = plan.peak_bytes() * static_cast<double>(here);
  const auto available = static_cast<double>(device::machine_memory_bytes());
  const std::string each = here > 1 ? fmt::format(" ({} processes of {})", here, gigabytes(plan.peak_bytes())) : "";
  print("memory", fmt::format("{}{} at the peak; there are {}", gigabytes(needed), each, gigabytes(available)));
  for (const MemoryPart& part : plan.parts) print("", fmt::format("{:>9}  {}", gigabytes(part.bytes), part.what));
  if (needed <= available) return;
  throw Error(ExitCode::kOutOfMemory,
              fmt::format("the run needs {} of memory, and there are {}", gigabytes(needed), gigabytes(available)),
              memory_remedies(inputs.config));
}

void require_disk(const TrainingInputs& inputs, int64_t trained, int64_t steps) {
  const config::Config& config = inputs.config;
  const auto weights = static_cast<double>(config.lora.use_peft ? trained * 4 : trained * 2);
  const int64_t interval = interval_steps(config.training.save_steps, steps);
  const int64_t all = config.training.save_strategy == "no" ? 0 : steps / interval + 1;
  const int64_t limit = config.training.save_total_limit;
  const int64_t kept = limit > 0 ? std::min(all, limit + 1) : all;  // one more while it is written
  const double needed = static_cast<double>(kept) * checkpoint_bytes(trained) + weights;
  fs::path folder = fs::absolute(config.output.output_dir);
  while (!fs::exists(folder)) folder = folder.parent_path();
  const auto available = static_cast<double>(fs::space(folder).available);
  print("disk", fmt::format("{} for {} checkpoint{} and the result; {} are free in {}", gigabytes(needed), kept,
                            kept == 1 ? "" : "s", gigabytes(available), folder.string()));
  if (needed <= available) return;
  throw Error(
      ExitCode::kIo,
      fmt::format("the run writes {}, and {} are free in {}", gigabytes(needed), gigabytes(available), folder.string()),
      "make room, or lower save_total_limit");
}

}  // namespace

void check(const config::Config& given, const dist::Launch& launch) {
  print("device", start_device(given.device, launch.local_world_size).description());
  const TrainingInputs inputs = prepare_training(given);
  const config::Config& config = inputs.config;
  const model::DecoderSpec& spec = inputs.model.spec;
  const hub::TensorSource source = inputs.model.base.open_weights();
  model::check_names(source, model::expected_tensors(spec), spec.tied_embeddings, "the model");
  const int64_t trained = trained_weights(inputs);
  const int64_t all = model::parameter_count(spec);
  print("model", fmt::format("{}, {:.1f} million weights, {:.2f} million of them trained", spec.model_type,
                             static_cast<double>(all) / 1e6, static_cast<double>(trained) / 1e6));
  if (inputs.data.validation) print_records("eval", *inputs.data.validation);
  if (!config.training.do_train) return;
  print_records("train", inputs.data.train);
  const data::BatchOrder order(inputs.data.train, training_order(config), /*epoch=*/0);
  StepLoader loader(inputs.data.train, training_order(config),
                    config.training.gradient_accumulation_steps * launch.world_size, {});
  const int64_t steps = total_steps(config.training, loader.steps_per_epoch());
  print("run", fmt::format("{} steps, {} an epoch", steps, loader.steps_per_epoch()));
  print_start(inputs);
  double stored = 0;
  for (const hub::TensorView& view : source.tensors()) stored += static_cast<double>(view.bytes.size());
  const bool is_mapped = stored_type(source) == compute_type(config.training) && !inputs.model.base.is_gguf;
  require_memory(inputs,
                 {.trained_weights = trained,
                  .stored_bytes = stored,
                  .is_mapped = is_mapped,
                  .tokens = largest_batch(order, inputs.data.train),
                  .processes = launch.world_size},
                 launch.local_world_size);
  require_disk(inputs, trained, steps);
}

}  // namespace fettle::train
