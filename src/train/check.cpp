// SPDX-License-Identifier: Apache-2.0
#include "train/check.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "base/log.h"
#include "device/device.h"
#include "hub/adapter.h"
#include "model/lora_targets.h"
#include "model/weights.h"
#include "train/checkpoint.h"
#include "train/memory_plan.h"
#include "train/memory_remedies.h"
#include "train/output_folder.h"
#include "train/ranks.h"
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

/// Weights that the run trains. Goes through the adapter that it begins or continues with, if any.
int64_t trained_weights(const TrainingInputs& inputs, const StartingPoint& start) {
  const config::Config& config = inputs.config;
  const model::DecoderSpec& spec = inputs.model.spec;
  if (!config.lora.use_peft) return model::parameter_count(spec);
  std::vector<model::TensorShape> tensors;
  if (config.model.adapter_name_or_path.empty()) {
    const hub::AdapterConfig adapter = model::adapter_config(config.lora);
    model::require_exclusions_match(model::module_names(spec), adapter.exclude_modules);
    tensors = model::expected_adapter_tensors(spec, adapter);
  } else {
    const fs::path folder =
        start.checkpoint ? *start.checkpoint
                         : hub::resolve_folder(config.model.adapter_name_or_path, config.model, "adapter_name_or_path");
    tensors = model::expected_adapter_tensors(spec, hub::read_adapter_config(folder));
    model::check_names(hub::open_adapter_weights(folder), tensors, /*tied_embeddings=*/false, "the adapter");
  }
  int64_t count = 0;
  for (const model::TensorShape& tensor : tensors) {
    count += std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  }
  return count;
}

/// Tokens of the largest micro-batch of any epoch.
int64_t largest_batch(const config::Config& config, const data::TokenDataset& dataset, at::Device device) {
  const data::OrderOptions options = training_order(config, dataset, device);
  if (options.fill_rows) return options.batch_size * options.max_seq_length;
  int64_t most = 0;
  if (!options.packing && options.shuffle) {  // the longest documents may meet in some epoch
    std::vector<int64_t> lengths;
    for (int64_t document = 0; document < dataset.size(); ++document) lengths.push_back(dataset.length(document));
    std::ranges::sort(lengths, std::greater{});
    lengths.resize(std::min(lengths.size(), static_cast<size_t>(config.training.per_device_train_batch_size)));
    return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  }
  const data::BatchOrder order(dataset, options, /*epoch=*/0);
  for (int64_t i = 0; i < order.batches(); ++i) {
    int64_t tokens = 0;
    for (const int64_t document : order.documents(i)) tokens += dataset.length(document);
    most = std::max(most, tokens);
  }
  return most;
}

void print_start(const config::Config& config, const StartingPoint& start) {
  const std::string& folder = config.output.output_dir;
  if (start.finished) {
    print("output", fmt::format("{}: this run is complete already", folder));
  } else if (start.checkpoint) {
    print("output", fmt::format("{}: continues from {}", folder, start.checkpoint->string()));
  } else {
    print("output", fmt::format("{}: starts at the first step", folder));
  }
}

/// A run that is taken up keeps the micro-batches a step that it began with.
int64_t batches_per_step(const config::Config& config, const StartingPoint& start, int64_t processes) {
  const int64_t now = config.training.gradient_accumulation_steps * processes;
  if (!start.checkpoint) return now;
  return read_checkpoint_state(*start.checkpoint).value("/state/batches_per_step"_json_pointer, now);
}

void print_records(const char* name, const data::TokenDataset& dataset) {
  const data::Preparation& facts = dataset.preparation();
  print(name, fmt::format("{} records, {} documents, {} tokens (longest {}), {:.1f} % of them targets", facts.records,
                          facts.documents, facts.tokens, facts.longest,
                          100.0 * static_cast<double>(facts.target_tokens) / static_cast<double>(facts.tokens)));
}

/// `here`: processes that share the memory.
void require_memory(const TrainingInputs& inputs, const PlannedRun& run, int64_t here, at::Device device) {
  const MemoryPlan plan = plan_memory(inputs.model.spec, inputs.config, run);
  const double needed = plan.peak_bytes(here);
  const auto available = static_cast<double>(device::memory_capacity_bytes(device));
  const std::string each = here > 1 ? fmt::format(" for {} processes of {}", here, gigabytes(plan.peak_bytes())) : "";
  print("memory", fmt::format("{} at the peak{}; {}", gigabytes(needed), each,
                              available > 0 ? "there are " + gigabytes(available) : "how much there is is not known"));
  for (const MemoryPart& part : plan.parts) print("", fmt::format("{:>9}  {}", gigabytes(part.bytes), part.what));
  if (needed <= available || available == 0) return;
  throw Error(ExitCode::kOutOfMemory,
              fmt::format("the run needs {} of memory, and there are {}", gigabytes(needed), gigabytes(available)),
              memory_remedies(inputs.config));
}

/// Checkpoints on disk at once, one while it is written included. save_minutes may add to those of save_steps, so with
/// a limit that is what counts.
int64_t most_checkpoints(const config::Config& config, int64_t steps, int64_t steps_per_epoch) {
  const config::TrainingConfig& training = config.training;
  if (training.save_strategy == "no") return 0;
  const int64_t interval =
      training.save_strategy == "epoch" ? steps_per_epoch : interval_steps(training.save_steps, steps);
  const int64_t all = (steps + interval - 1) / interval;
  const int64_t limit = training.save_total_limit;
  if (limit == 0) return all;
  return training.save_minutes > 0 ? limit + 1 : std::min(all, limit + 1);
}

/// What do_quantize writes: the merged model, and the quantized one, whose layers wait beside it until it is whole.
/// `weights`: of the model, in which each matrix has a scale a group, here counted as 16 bits more for 32.
double quantized_bytes(const config::Config& config, double weights, double stored) {
  if (!config.quantization.do_quantize) return 0;
  const double quantized = weights * (static_cast<double>(config.quantization.woq_bits) + 0.5) / 8;
  return (config.lora.use_peft ? stored : 0) + 2 * quantized;
}

void require_disk(const config::Config& config, int64_t checkpoints, int64_t trained, double result) {
  const double needed = static_cast<double>(checkpoints) * checkpoint_bytes(trained) + result;
  fs::path folder = fs::absolute(config.output.output_dir);
  double held = 0;
  for (const fs::path& checkpoint : list_checkpoints(folder)) {
    for (const auto& file : fs::directory_iterator(checkpoint)) held += static_cast<double>(file.file_size());
  }
  while (!fs::exists(folder)) folder = folder.parent_path();
  const double available = held + static_cast<double>(fs::space(folder).available);
  print("disk", fmt::format("{} for {} checkpoint{} and the result{}; {} are free in {} or held by its checkpoints",
                            gigabytes(needed), checkpoints, checkpoints == 1 ? "" : "s",
                            config.quantization.do_quantize ? ", merged and quantized too" : "", gigabytes(available),
                            folder.string()));
  if (needed <= available) return;
  throw Error(
      ExitCode::kIo,
      fmt::format("the run writes {}, and {} are free in {}", gigabytes(needed), gigabytes(available), folder.string()),
      "make room, or lower save_total_limit");
}

}  // namespace

void check(const config::Config& given, const dist::Launch& launch) {
  const device::Device device = start_device(given.device, {launch.local_world_size, launch.local_rank});
  print("device", device.description());
  const TrainingInputs inputs = prepare_training(given);
  const config::Config& config = inputs.config;
  const model::DecoderSpec& spec = inputs.model.spec;
  const hub::TensorSource source = inputs.model.base.open_weights();
  model::check_names(source, model::stored_tensors(spec, source), spec.tied_embeddings, "the model");
  if (inputs.data.validation) print_records("eval", *inputs.data.validation);
  if (!config.training.do_train) return;
  const data::TokenDataset& records = inputs.data.train;
  print_records("train", records);
  const StartingPoint start =
      find_starting_point(config, run_identity(config, records.fingerprint(), weights_fingerprint(source)));
  print_start(config, start);
  if (start.finished) return;
  const int64_t trained = trained_weights(inputs, start);
  print("model",
        fmt::format("{}, {:.1f} million weights, {:.2f} million of them trained", spec.model_type,
                    static_cast<double>(model::parameter_count(spec)) / 1e6, static_cast<double>(trained) / 1e6));
  StepLoader loader(records, training_order(config, records, device.torch_device),
                    batches_per_step(config, start, launch.world_size));
  const int64_t steps = total_steps(config.training, loader.steps_per_epoch());
  print("run", fmt::format("{} steps, {} an epoch", steps, loader.steps_per_epoch()));
  double stored = 0;
  for (const hub::TensorView& view : source.tensors()) stored += static_cast<double>(view.bytes.size());
  const at::ScalarType type = stored_type(source);
  const bool is_on_gpu = !device.torch_device.is_cpu();
  require_memory(inputs,
                 {.trained_weights = trained,
                  .stored_bytes = stored,
                  .is_mapped = !is_on_gpu && type == compute_type(config.training) && !inputs.model.base.is_gguf,
                  .tokens = largest_batch(config, records, device.torch_device),
                  .longest = records.preparation().longest,
                  .threads = at::get_num_threads(),
                  .processes = launch.world_size,
                  .is_on_gpu = is_on_gpu},
                 is_on_gpu ? 1 : launch.local_world_size, device.torch_device);
  const auto weight_bytes = config.lora.use_peft ? sizeof(float) : c10::elementSize(type);
  require_disk(config, most_checkpoints(config, steps, loader.steps_per_epoch()), trained,
               static_cast<double>(trained) * static_cast<double>(weight_bytes) +
                   quantized_bytes(config, static_cast<double>(model::parameter_count(spec)), stored));
}

}  // namespace fettle::train
