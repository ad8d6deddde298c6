// SPDX-License-Identifier: Apache-2.0
// The option table's training section.
#include "config/option_table.h"

namespace fettle::config::table {
namespace {

constexpr unsigned kTrainOrEval = kTrain | kEval | kMerge | kQuantize;

std::vector<Option> batch_options() {
  return {
      {.name = "do_train", .slot = slot<&TrainingConfig::do_train>, .help = "Train.", .commands = kTrain},
      {.name = "do_eval",
       .slot = slot<&TrainingConfig::do_eval>,
       .help = "Evaluate before and after training if there are evaluation records.",
       .commands = kTrain},
      {.name = "per_device_train_batch_size",
       .slot = slot<&TrainingConfig::per_device_train_batch_size>,
       .help = "Packed rows, or records without packing, in one forward and backward pass.",
       .commands = kTrain,
       .range = at_least(1)},
      {.name = "per_device_eval_batch_size",
       .slot = slot<&TrainingConfig::per_device_eval_batch_size>,
       .help = "The same for evaluation.",
       .commands = kTrainOrEval,
       .range = at_least(1)},
      {.name = "gradient_accumulation_steps",
       .slot = slot<&TrainingConfig::gradient_accumulation_steps>,
       .help = "Passes that make up one optimizer step; the loss is the mean over all their target tokens.",
       .commands = kTrain,
       .range = at_least(1)},
      {.name = "learning_rate",
       .slot = slot<&TrainingConfig::learning_rate>,
       .help = "Peak learning rate; unset: 2e-4 with LoRA, 2e-5 for full fine-tuning.",
       .commands = kTrain,
       .range = at_least(0)},
      {.name = "lr_scheduler_type",
       .slot = slot<&TrainingConfig::lr_scheduler_type>,
       .help = "How the learning rate changes, as the schedulers of transformers.",
       .commands = kTrain,
       .choices = {"linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
                   "inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
                   "warmup_stable_decay", "greedy"}},
      {.name = "lr_scheduler_kwargs",
       .slot = slot<&TrainingConfig::lr_scheduler_kwargs>,
       .help = "The scheduler's own parameters, for instance {\"num_cycles\": 2}.",
       .commands = kTrain,
       .text_format = TextFormat::kJsonObject},
      {.name = "warmup_ratio",
       .slot = slot<&TrainingConfig::warmup_ratio>,
       .help = "Part of all steps in which the learning rate rises to its peak.",
       .commands = kTrain,
       .range = between(0, 1)},
      {.name = "warmup_steps",
       .slot = slot<&TrainingConfig::warmup_steps>,
       .help = "Steps of warm-up in place of warmup_ratio; below 1: a ratio.",
       .commands = kTrain,
       .range = {.minimum = 0, .whole_from_one = true}},
  };
}

std::vector<Option> optimizer_options() {
  return {
      {.name = "weight_decay",
       .slot = slot<&TrainingConfig::weight_decay>,
       .help = "Decoupled weight decay of all trained matrices; biases and norms have none.",
       .commands = kTrain,
       .range = at_least(0)},
      {.name = "adam_beta1",
       .slot = slot<&TrainingConfig::adam_beta1>,
       .help = "Decay of the mean of gradients.",
       .commands = kTrain,
       .range = from_to_below(0, 1)},
      {.name = "adam_beta2",
       .slot = slot<&TrainingConfig::adam_beta2>,
       .help = "Decay of the mean of squared gradients.",
       .commands = kTrain,
       .range = from_to_below(0, 1)},
      {.name = "adam_epsilon",
       .slot = slot<&TrainingConfig::adam_epsilon>,
       .help = "Added to the denominator of the update.",
       .commands = kTrain,
       .range = at_least(0)},
      {.name = "max_grad_norm",
       .slot = slot<&TrainingConfig::max_grad_norm>,
       .help = "Clip the gradient to this norm; 0: never.",
       .commands = kTrain,
       .range = at_least(0)},
      {.name = "grad_spike_limit",
       .slot = slot<&TrainingConfig::grad_spike_limit>,
       .help = "Stop, with the state before the step saved, at a gradient norm so many times the median of the last 50 "
               "steps; 0: never.",
       .commands = kTrain,
       .range = at_least(0)},
  };
}

std::vector<Option> loop_options() {
  return {
      {.name = "num_train_epochs",
       .slot = slot<&TrainingConfig::num_train_epochs>,
       .help = "Times the training records are seen; may be a fraction.",
       .commands = kTrain,
       .range = above(0)},
      {.name = "max_steps",
       .slot = slot<&TrainingConfig::max_steps>,
       .help = "Optimizer steps in place of num_train_epochs; -1: not used.",
       .commands = kTrain,
       .range = at_least(-1)},
      {.name = "optim",
       .slot = slot<&TrainingConfig::optim>,
       .help = "The optimizer.",
       .commands = kTrain,
       .choices = {"adamw"},
       .value_aliases = {{"adamw_torch", "adamw"}, {"adamw_torch_fused", "adamw"}, {"adamw_hf", "adamw"}},
       .unavailable = {"adamw_bf16", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
                       "adafactor", "sgd", "lion", "lion_32bit", "lion_8bit"}},
      {.name = "bf16",
       .slot = slot<&TrainingConfig::bf16>,
       .help = "Compute in bfloat16 with float32 master weights; false: all in float32.",
       .commands = kCompute & ~kMerge},
      {.name = "gradient_checkpointing",
       .slot = slot<&TrainingConfig::gradient_checkpointing>,
       .help = "Recompute the layers' activations in the backward pass to save memory.",
       .commands = kTrain},
  };
}

std::vector<Option> logging_options() {
  return {
      {.name = "logging_steps",
       .slot = slot<&TrainingConfig::logging_steps>,
       .help = "A log line every so many steps; below 1: a ratio of all steps.",
       .commands = kTrain,
       .range = {.minimum = 0, .minimum_excluded = true, .whole_from_one = true}},
      {.name = "logging_first_step",
       .slot = slot<&TrainingConfig::logging_first_step>,
       .help = "Also log the first step.",
       .commands = kTrain},
      {.name = "report_to",
       .slot = slot<&TrainingConfig::report_to>,
       .help = "Who is told the numbers of metrics.jsonl too: TensorBoard, by event files in logging_dir.",
       .commands = kTrain,
       .choices = {"none", "tensorboard"},
       .value_aliases = {{"all", "tensorboard"}},
       .unavailable = {"wandb", "mlflow", "comet_ml", "clearml", "neptune", "swanlab", "trackio"}},
      {.name = "logging_dir",
       .slot = slot<&TrainingConfig::logging_dir>,
       .help = "Folder of TensorBoard's event files; empty: runs in output_dir.",
       .commands = kTrain},
      {.name = "metrics_port",
       .slot = slot<&TrainingConfig::metrics_port>,
       .help = "Port at which the first process of a machine serves Prometheus' /metrics, and /healthz; 0: none.",
       .commands = kTrain,
       .range = between(0, 65535)},
      {.name = "throughput_warmup_steps",
       .slot = slot<&TrainingConfig::throughput_warmup_steps>,
       .help =
           "First steps of a process that are left out of tokens_per_second and MFU, as they compile; -1: 3 on hpu, "
           "else 0.",
       .commands = kTrain,
       .range = at_least(-1)},
      {.name = "profile_steps",
       .slot = slot<&TrainingConfig::profile_steps>,
       .help = "Show where the time of so many steps goes, from the fourth on: a table in the log, profile.json, and "
               "trace.json for a trace viewer; 0: none.",
       .commands = kTrain,
       .range = between(0, 100)},
  };
}

std::vector<Option> interval_options() {
  return {
      {.name = "eval_strategy",
       .slot = slot<&TrainingConfig::eval_strategy>,
       .help = "When to evaluate during training.",
       .commands = kTrain,
       .choices = {"no", "steps", "epoch"},
       .value_aliases = {{"false", "no"}}},
      {.name = "eval_steps",
       .slot = slot<&TrainingConfig::eval_steps>,
       .help = "Steps between evaluations; below 1: a ratio of all steps; 0: logging_steps.",
       .commands = kTrain,
       .range = {.minimum = 0, .whole_from_one = true}},
      {.name = "save_strategy",
       .slot = slot<&TrainingConfig::save_strategy>,
       .help = "When to write a checkpoint.",
       .commands = kTrain,
       .choices = {"no", "steps", "epoch"},
       .value_aliases = {{"false", "no"}},
       .unavailable = {"best"}},
      {.name = "save_steps",
       .slot = slot<&TrainingConfig::save_steps>,
       .help = "Steps between checkpoints; below 1: a ratio of all steps.",
       .commands = kTrain,
       .range = {.minimum = 0, .minimum_excluded = true, .whole_from_one = true}},
      {.name = "save_minutes",
       .slot = slot<&TrainingConfig::save_minutes>,
       .help = "Also write a checkpoint after so many minutes without one; 0: never.",
       .commands = kTrain,
       .range = at_least(0)},
      {.name = "async_save",
       .slot = slot<&TrainingConfig::async_save>,
       .help = "Write checkpoints in the background, from a copy of the trained weights and the optimizer's state; "
               "false: training waits, and no copy is made.",
       .commands = kTrain},
      {.name = "save_total_limit",
       .slot = slot<&TrainingConfig::save_total_limit>,
       .help = "Checkpoints kept, the newest; 0: all.",
       .commands = kTrain,
       .range = at_least(0)},
      {.name = "seed",
       .slot = slot<&TrainingConfig::seed>,
       .help = "Decides the adapter's first weights, dropout, the order of training records and sampled tokens.",
       .commands = kTrain | kAnswer | kQuantize,
       .range = at_least(0)},
  };
}

}  // namespace

std::vector<Option> training_options() {
  return join({batch_options(), optimizer_options(), loop_options(), logging_options(), interval_options()});
}

}  // namespace fettle::config::table
