// SPDX-License-Identifier: Apache-2.0
#include "config/validate.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/utf8.h"
#include "base/watchdog.h"
#include "config/parse.h"
#include "config/split.h"
#include "config/value.h"

namespace fettle::config {
namespace {

/// The rules' vocabulary over one Parsed and command.
class Rules {
 public:
  Rules(Parsed& parsed, Command command) : parsed_(parsed), command_(command) {}

  [[nodiscard]] bool given(std::string_view name) const {
    return parsed_.given.contains(std::string(name)) && find_option(name)->used_by(command_);
  }

  [[nodiscard]] const std::string& where(std::string_view name) const { return parsed_.given.at(std::string(name)); }

  void require(bool satisfied, std::string_view what, std::string_view hint) const {
    if (!satisfied) {
      throw Error(ExitCode::kUsage, fmt::format("fettle {} needs {}", to_string(command_), what), std::string(hint));
    }
  }

  /// Given, and to something else than the default.
  [[nodiscard]] bool changed(std::string_view name) const {
    return given(name) && !is_default(*find_option(name), parsed_.config);
  }

  /// `first` and `second` say the same thing in two ways, and both say nothing by default.
  void exclusive(std::string_view first, std::string_view second) {
    if (changed(first) && changed(second)) choose(first, second);
  }

  /// `first` replaces `second`, which has an effect even by default: an argument with that default counts too.
  void replaces(std::string_view first, std::string_view second) {
    const bool is_argument = given(second) && where(second) == kCommandLine;
    if (changed(first) && (changed(second) || is_argument)) choose(first, second);
  }

  /// `option` could have no effect because of `cause`, for instance "use_peft is false", set by option `culprit`.
  void no_effect(std::string_view option, std::string_view cause, std::string_view culprit) {
    if (!changed(option)) return;
    const bool culprit_is_argument = given(culprit) && where(culprit) == kCommandLine;
    const std::string what = fmt::format("{} ({}) has no effect: {}", option, where(option), cause);
    if (!culprit_is_argument || where(option) == kCommandLine) {
      throw Error(ExitCode::kConfig, what, fmt::format("remove {} or change {}", option, culprit));
    }
    parsed_.notices.push_back(what);
    set_default(*find_option(option), parsed_.config);  // or a log and a model card would claim it was used
    parsed_.given.erase(std::string(option));
  }

  void no_effect(std::initializer_list<std::string_view> options, std::string_view cause, std::string_view culprit) {
    for (const std::string_view option : options) no_effect(option, cause, culprit);
  }

  void contradiction(bool found, const std::string& what, std::string_view hint) const {
    if (found) throw Error(ExitCode::kConfig, what, std::string(hint));
  }

 private:
  /// Of two alternatives the argument wins over the file's; two of the same source are an error.
  void choose(std::string_view first, std::string_view second) {
    const bool first_is_argument = where(first) == kCommandLine;
    if (first_is_argument == (where(second) == kCommandLine)) {
      throw Error(ExitCode::kConfig,
                  fmt::format("{} ({}) and {} ({}) exclude each other", first, where(first), second, where(second)),
                  "give one of them");
    }
    const std::string_view loser = first_is_argument ? second : first;
    const std::string_view winner = first_is_argument ? first : second;
    parsed_.notices.push_back(
        fmt::format("{} ({}) is replaced by {} ({})", loser, where(loser), winner, where(winner)));
    set_default(*find_option(loser), parsed_.config);
    parsed_.given.erase(std::string(loser));
  }

  Parsed& parsed_;
  Command command_;
};

bool has_training_records(const DataConfig& data) {
  return !data.train_file.empty() || !data.dataset_name.empty();
}

/// A dataset folder may have a validation file of its own; only the data room can tell.
bool may_have_evaluation_records(const DataConfig& data) {
  return !data.validation_file.empty() || !data.dataset_name.empty() || data.validation_split_percentage > 0;
}

bool is_date(const std::string& text) {
  int year = 0;
  unsigned month = 0;
  unsigned day = 0;
  char rest = 0;
  return text.size() == 10 && std::sscanf(text.c_str(), "%4d-%2u-%2u%c", &year, &month, &day, &rest) == 3 &&
         std::chrono::year_month_day(std::chrono::year(year), std::chrono::month(month), std::chrono::day(day)).ok();
}

void check_data(Rules& rules, const DataConfig& data) {
  rules.contradiction(!data.template_date.empty() && !is_date(data.template_date),
                      fmt::format("template_date: {} is not a date", quote(data.template_date)),
                      "write it as YYYY-MM-DD, for instance 2026-01-31");
  rules.exclusive("train_file", "dataset_name");
  if (!data.dataset_split.empty()) parse_split(data.dataset_split, "dataset_split");
  if (!data.dataset_test_split.empty()) parse_split(data.dataset_test_split, "dataset_test_split");
  if (data.dataset_name.empty()) {
    rules.no_effect({"dataset_config_name", "dataset_split", "dataset_test_split", "dataset_revision"},
                    "dataset_name is not set", data.train_file.empty() ? "dataset_name" : "train_file");
  }
  if (!data.validation_file.empty()) {
    rules.no_effect("dataset_test_split", "validation_file is given", "validation_file");
  }
  rules.exclusive("validation_file", "validation_split_percentage");
  if (!data.completion_only_loss) {
    rules.no_effect("mask_history", "completion_only_loss is false", "completion_only_loss");
  }
  if (!data.packing) rules.no_effect("packing_strategy", "packing is false", "packing");
  if (data.prompt_template == "none") {
    rules.no_effect({"prompt_with_input", "prompt_without_input"}, "prompt_template is none", "prompt_template");
  }
}

/// The one that is set, or by default that of 4 bits.
std::string_view few_bits_option(const ModelConfig& model) {
  if (model.load_in_8bit) return "load_in_8bit";
  return model.load_in_fp8 ? "load_in_fp8" : "load_in_4bit";
}

void check_quantization(Rules& rules, const ModelConfig& model) {
  rules.exclusive("load_in_8bit", "load_in_4bit");
  rules.exclusive("load_in_fp8", "load_in_4bit");
  rules.exclusive("load_in_fp8", "load_in_8bit");
  if (!model.load_in_4bit) rules.no_effect("bnb_4bit_quant_type", "load_in_4bit is false", few_bits_option(model));
}

void check_method(Rules& rules, const Config& config) {
  const bool is_quantized = config.model.load_in_4bit || config.model.load_in_8bit || config.model.load_in_fp8;
  const std::string_view few_bits = few_bits_option(config.model);
  rules.contradiction(is_quantized && !config.lora.use_peft,
                      fmt::format("{} is true and use_peft is false: weights in few bits cannot be trained", few_bits),
                      "train an adapter (use_peft: true)");
  rules.contradiction(is_quantized && config.distributed.zero_stage == 3,
                      fmt::format("{} is true and zero_stage is 3, which shares out the base's weights", few_bits),
                      "use zero_stage 2: a quantized base is small");
  if (config.lora.use_peft) {
    rules.no_effect("max_shard_size", "an adapter is one file", "use_peft");
    if (!config.model.adapter_name_or_path.empty()) {
      rules.no_effect(
          {"lora_r", "lora_alpha", "lora_target_modules", "lora_exclude_modules", "lora_modules_to_save", "use_rslora"},
          "adapter_name_or_path is given, and the adapter has its own", "adapter_name_or_path");
    }
    return;
  }
  rules.no_effect({"lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_exclude_modules",
                   "lora_modules_to_save", "use_rslora"},
                  "use_peft is false", "use_peft");
  rules.contradiction(!config.model.adapter_name_or_path.empty(),
                      "adapter_name_or_path is given and use_peft is false: full fine-tuning trains no adapter",
                      "merge the adapter into the model first, or set use_peft: true");
}

void check_schedule(Rules& rules, const TrainingConfig& training) {
  rules.replaces("max_steps", "num_train_epochs");
  rules.replaces("warmup_steps", "warmup_ratio");
  const std::string& type = training.lr_scheduler_type;
  const std::string cause = "lr_scheduler_type is " + type;
  const bool is_adaptive = type == "reduce_lr_on_plateau" || type == "greedy";
  if (type == "constant" || is_adaptive) {
    rules.no_effect({"warmup_ratio", "warmup_steps"}, cause, "lr_scheduler_type");
  }
  if (type == "constant" || type == "constant_with_warmup" || type == "linear") {
    rules.no_effect("lr_scheduler_kwargs", cause, "lr_scheduler_type");
  }
  rules.contradiction(is_adaptive && training.eval_strategy == "no",
                      cause + ", which follows the evaluation loss, and eval_strategy is no",
                      "set eval_strategy to steps or epoch");
}

void check_strategies(Rules& rules, const Config& config) {
  const TrainingConfig& training = config.training;
  if (training.eval_strategy != "steps") {
    rules.no_effect("eval_steps", "eval_strategy is " + training.eval_strategy, "eval_strategy");
  }
  if (training.save_strategy != "steps") {
    rules.no_effect("save_steps", "save_strategy is " + training.save_strategy, "save_strategy");
  }
  if (training.save_strategy == "no")
    rules.no_effect({"save_minutes", "save_total_limit"}, "save_strategy is no", "save_strategy");
  const bool evaluates = training.eval_strategy != "no";
  rules.contradiction(evaluates && !training.do_eval,
                      fmt::format("eval_strategy is {} and do_eval is false", training.eval_strategy),
                      "set do_eval: true or eval_strategy: no");
  rules.contradiction(evaluates && !may_have_evaluation_records(config.data),
                      fmt::format("eval_strategy is {} and there are no evaluation records", training.eval_strategy),
                      "give validation_file or validation_split_percentage");
}

void check_algorithm(Rules& rules, const QuantizationConfig& quantization) {
  const std::string& algorithm = quantization.woq_algo;
  const std::string cause = "woq_algo is " + algorithm;
  if (algorithm == "RTN") rules.no_effect({"calibration_samples", "calibration_length"}, cause, "woq_algo");
  if (algorithm != "GPTQ") {
    rules.no_effect({"act_order", "static_groups", "gptq_clip", "damp_percent", "gptq_block_size"}, cause, "woq_algo");
  }
  if (algorithm != "AWQ") rules.no_effect({"awq_clip", "awq_grid_size"}, cause, "woq_algo");
  if (algorithm != "TEQ") rules.no_effect({"teq_steps", "teq_learning_rate"}, cause, "woq_algo");
  if (quantization.woq_group_size == -1) {
    rules.no_effect("static_groups", "woq_group_size is -1: a row is one group", "woq_group_size");
  } else if (!quantization.static_groups) {
    rules.no_effect("gptq_clip", "static_groups is false", "static_groups");
  }
}

/// What the programs that read a format can read.
void check_format(const Rules& rules, const QuantizationConfig& quantization) {
  const std::string& format = quantization.woq_format;
  const int64_t bits = quantization.woq_bits;
  const bool is_gptq = format == "gptq" || format == "gptq_v2";
  rules.contradiction(is_gptq && bits != 2 && bits != 3 && bits != 4 && bits != 8,
                      fmt::format("woq_format is {} and woq_bits {}: that format has 2, 3, 4 and 8", format, bits),
                      "set woq_format: compressed-tensors, or another woq_bits");
  rules.contradiction(format == "awq" && bits != 4,
                      fmt::format("woq_format is awq and woq_bits {}: that format has 4", bits),
                      "set woq_bits: 4, or woq_format: compressed-tensors");
  rules.contradiction(
      format == "awq" && quantization.woq_algo == "GPTQ" && quantization.act_order && !quantization.static_groups,
      "woq_format is awq and act_order is true: that format has no place for the order of columns",
      "set static_groups: true, or woq_format: gptq");
  rules.contradiction(bits == 1 && quantization.woq_scheme == "sym",
                      "woq_bits is 1 and woq_scheme is sym: of two symmetric values one would be zero",
                      "set woq_scheme: asym");
}

void check_quantize(Rules& rules, const Config& config) {
  check_algorithm(rules, config.quantization);
  check_format(rules, config.quantization);
  const bool needs_records = config.quantization.woq_algo != "RTN";
  rules.require(!needs_records || has_training_records(config.data), "train_file or dataset_name",
                config.quantization.woq_algo + " looks at what the layers are given on these records");
}

void check_after_training(Rules& rules, const Config& config) {
  if (config.quantization.do_quantize) {
    check_quantize(rules, config);
  } else {
    for (const Option& option : table::quantization_options()) {
      if (option.name != "do_quantize") rules.no_effect(option.name, "do_quantize is false", "do_quantize");
    }
  }
  if (config.benchmark.do_benchmark) return;
  for (const Option& option : table::benchmark_options()) {
    if (option.name != "do_benchmark") rules.no_effect(option.name, "do_benchmark is false", "do_benchmark");
  }
}

void check_train(Rules& rules, const Config& config) {
  rules.contradiction(!config.training.do_train && !config.training.do_eval, "do_train and do_eval are both false",
                      "set one of them to true");
  rules.require(has_training_records(config.data) || !config.training.do_train, "train_file or dataset_name",
                "say which records to train on");
  rules.require(config.training.do_train || may_have_evaluation_records(config.data), "validation_file or dataset_name",
                "do_train is false: say which records to evaluate on");
  rules.require(!config.output.output_dir.empty(), "output_dir", "say where the result goes");
  parse_section_limits(config.distributed.section_timeouts);
  check_method(rules, config);
  check_schedule(rules, config.training);
  check_strategies(rules, config);
  check_after_training(rules, config);
}

void check_eval(Rules& rules, const Config& config) {
  const DataConfig& data = config.data;
  const bool split = !data.train_file.empty() && data.validation_split_percentage > 0;
  rules.require(!data.validation_file.empty() || !data.dataset_name.empty() || split || !config.eval.task_file.empty(),
                "validation_file, dataset_name, train_file with validation_split_percentage, or task_file",
                "say which records to evaluate");
  if (config.eval.task_file.empty()) rules.no_effect("task_output", "task_file is not set", "task_file");
  if (data.validation_file.empty() && data.dataset_name.empty() && !split) {
    rules.no_effect({"per_record", "logits_file"}, "there are no evaluation records", "task_file");
  }
  rules.contradiction(!config.eval.compare.empty() && !config.eval.logits_file.empty(),
                      "logits_file and compare are both given, and a file holds the logits of one model",
                      "leave one of them out");
}

void check_merge(const Rules& rules, const Config& config) {
  rules.require(!config.model.adapter_name_or_path.empty() || !config.merge.merge_adapters.empty(),
                "adapter_name_or_path or merge_adapters", "say what to merge into the model");
  rules.require(!config.output.output_dir.empty(), "output_dir", "say where the merged model goes");
}

void check_download(const Rules& rules, const Config& config) {
  const ModelConfig& model = config.model;
  const bool has_model = !model.model_name_or_path.empty() || !model.tokenizer_name.empty() ||
                         !model.config_name.empty() || !model.adapter_name_or_path.empty();
  const bool has_records = may_have_evaluation_records(config.data) || has_training_records(config.data);
  rules.require(has_model || has_records, "model_name_or_path or dataset_name", "say what to download");
  rules.require(config.preprocess.output.empty() || has_training_records(config.data), "dataset_name or train_file",
                "say which records go into output");
}

void check_answers(Rules& rules, const GenerationConfig& generation) {
  if (!generation.do_sample) {
    rules.no_effect({"temperature", "top_k", "top_p", "min_p"}, "do_sample is false", "do_sample");
  }
}

void check_generate(Rules& rules, const Config& config) {
  const GenerationConfig& generation = config.generation;
  rules.exclusive("prompt", "prompts_file");
  rules.require(!generation.prompt.empty() || !generation.prompts_file.empty(), "prompt or prompts_file",
                "give --prompt=\"…\", --prompt=- for standard input, or a file of prompts");
  rules.require(generation.prompts_file.empty() || !config.preprocess.output.empty(), "output",
                "say which file the answers to prompts_file go into");
  if (generation.prompts_file.empty()) {
    rules.no_effect({"output", "overwrite_output"}, "prompts_file is not set", "prompts_file");
  }
  if (generation.raw_prompt) rules.no_effect("system_prompt", "raw_prompt is true", "raw_prompt");
  check_answers(rules, generation);
}

void check_export(const Rules& rules, const Config& config) {
  rules.require(!config.preprocess.output.empty(), "output", "say where the .gguf file goes");
}

}  // namespace

void validate(Parsed& parsed, Command command) {
  Rules rules(parsed, command);
  const Config& config = parsed.config;
  if (command == Command::kDownload) {
    check_download(rules, config);
  } else if (command == Command::kPreprocess) {
    rules.require(!config.model.model_name_or_path.empty() || !config.model.tokenizer_name.empty(),
                  "tokenizer_name or model_name_or_path", "say whose tokenizer makes the tokens");
  } else {
    rules.require(!config.model.model_name_or_path.empty(), "model_name_or_path",
                  "give a model's folder, a .gguf file, or its name on the hub");
  }
  check_data(rules, config.data);
  check_quantization(rules, config.model);
  switch (command) {
    case Command::kTrain:
    case Command::kCheck:
      return check_train(rules, config);
    case Command::kEval:
      return check_eval(rules, config);
    case Command::kGenerate:
      return check_generate(rules, config);
    case Command::kChat:
      return check_answers(rules, config.generation);
    case Command::kMerge:
      return check_merge(rules, config);
    case Command::kQuantize:
      rules.require(!config.output.output_dir.empty(), "output_dir", "say where the quantized model goes");
      return check_quantize(rules, config);
    case Command::kExport:
      return check_export(rules, config);
    case Command::kBenchmark:
      return;
    case Command::kPreprocess:
      return rules.require(has_training_records(config.data), "train_file or dataset_name",
                           "say which records to prepare");
    case Command::kDownload:
      return;
  }
}

}  // namespace fettle::config
