// SPDX-License-Identifier: Apache-2.0
#include "config/option_table.h"

#include <unordered_map>

namespace fettle::config {
namespace {

using namespace table;

std::vector<Option> model_options() {
  return {
      {.name = "model_name_or_path",
       .slot = slot<&ModelConfig::model_name_or_path>,
       .help = "The model: a folder, a .gguf file, or a name on the hub (org/name), which is downloaded once.",
       .commands = kAll},
      {.name = "model_revision",
       .slot = slot<&ModelConfig::model_revision>,
       .help = "Branch, tag or commit of model_name_or_path on the hub.",
       .commands = kAll},
      {.name = "config_name",
       .slot = slot<&ModelConfig::config_name>,
       .help = "Folder or hub name whose config.json is used instead of the model's own.",
       .commands = kAll},
      {.name = "tokenizer_name",
       .slot = slot<&ModelConfig::tokenizer_name>,
       .help = "Folder or hub name of the tokenizer, if it is not the model's own.",
       .commands = kAll},
      {.name = "cache_dir",
       .slot = slot<&ModelConfig::cache_dir>,
       .help = "The hub cache, shared with Hugging Face's tools; empty: $HF_HUB_CACHE, else $HF_HOME/hub, else "
               "~/.cache/huggingface/hub.",
       .commands = kAll},
      {.name = "adapter_name_or_path",
       .slot = slot<&ModelConfig::adapter_name_or_path>,
       .help = "PEFT adapter to continue training, to evaluate, to generate with, to merge or to export: a folder or a "
               "hub name.",
       .commands = kAll & ~(kPreprocess | kQuantize)},
      {.name = "load_in_8bit",
       .slot = slot<&ModelConfig::load_in_8bit>,
       .help = "Keep the base's matrices in 8 bits, each block of 64 elements with a scale.",
       .commands = kTrain | kEval | kAnswer | kBenchmark},
      {.name = "load_in_fp8",
       .slot = slot<&ModelConfig::load_in_fp8>,
       .help =
           "Keep the base's matrices in float8 (e4m3), each with one scale. On hpu the forward's products are computed "
           "in it, inputs rounded too: faster, less exact. Elsewhere it only saves memory, as load_in_8bit, which is "
           "more exact.",
       .commands = kTrain | kEval | kAnswer | kBenchmark},
      {.name = "load_in_4bit",
       .slot = slot<&ModelConfig::load_in_4bit>,
       .help = "The same in 4 bits (QLoRA).",
       .commands = kTrain | kEval | kAnswer | kBenchmark},
      {.name = "bnb_4bit_quant_type",
       .slot = slot<&ModelConfig::bnb_4bit_quant_type>,
       .help = "What 4 bits stand for: nf4 and fp4 as bitsandbytes has them, or evenly spaced int4.",
       .commands = kTrain | kEval | kAnswer | kBenchmark,
       .choices = {"nf4", "fp4", "int4"}},
  };
}

std::vector<Option> lora_options() {
  return {
      {.name = "use_peft",
       .slot = slot<&LoraConfig::use_peft>,
       .help = "Train a LoRA adapter; false: full fine-tuning.",
       .commands = kTrain},
      {.name = "lora_r",
       .slot = slot<&LoraConfig::lora_r>,
       .help = "Rank of the adapter's matrices.",
       .commands = kTrain,
       .range = at_least(1)},
      {.name = "lora_alpha",
       .slot = slot<&LoraConfig::lora_alpha>,
       .help = "The adapter's output is scaled by lora_alpha / lora_r.",
       .commands = kTrain,
       .range = above(0)},
      {.name = "lora_dropout",
       .slot = slot<&LoraConfig::lora_dropout>,
       .help = "Dropout on the adapter's input while training; unset: 0, or with adapter_name_or_path the adapter's "
               "own.",
       .commands = kTrain,
       .range = from_to_below(0, 1)},
      {.name = "lora_target_modules",
       .slot = slot<&LoraConfig::lora_target_modules>,
       .help = "Layers that get an adapter: names, one regular expression for the full name, or all-linear.",
       .commands = kTrain,
       .list_syntax = ListSyntax::kPatterns},
      {.name = "lora_exclude_modules",
       .slot = slot<&LoraConfig::lora_exclude_modules>,
       .help = "Layers that get none although lora_target_modules matches them: names or one regular expression.",
       .commands = kTrain,
       .list_syntax = ListSyntax::kPatterns},
      {.name = "lora_modules_to_save",
       .slot = slot<&LoraConfig::lora_modules_to_save>,
       .help = "Layers trained and saved whole beside the adapter, for instance lm_head.",
       .commands = kTrain},
      {.name = "use_rslora",
       .slot = slot<&LoraConfig::use_rslora>,
       .help = "Scale by lora_alpha / sqrt(lora_r) (rank-stabilised LoRA).",
       .commands = kTrain},
  };
}

std::vector<Option> output_options() {
  return {
      {.name = "output_dir",
       .slot = slot<&OutputConfig::output_dir>,
       .help =
           "Folder for the result: the trained adapter or model with its checkpoints, metrics and configuration, the "
           "merged or the quantized model.",
       .commands = kTrain | kMerge | kQuantize},
      {.name = "overwrite_output_dir",
       .slot = slot<&OutputConfig::overwrite_output_dir>,
       .help = "Start over in a folder that already holds a result.",
       .commands = kTrain | kMerge | kQuantize},
      {.name = "resume_from_checkpoint",
       .slot = slot<&OutputConfig::resume_from_checkpoint>,
       .help = "auto: continue from the newest whole checkpoint in output_dir; none: start at step 0; or a checkpoint "
               "folder.",
       .commands = kTrain,
       .choices = {"auto", "none"},
       .value_aliases = {{"true", "auto"}, {"false", "none"}},
       .choices_or_file = true},
      {.name = "verify_saved_model",
       .slot = slot<&OutputConfig::verify_saved_model>,
       .help = "Read the saved result back and compare its loss before reporting success; of a merged model its logits "
               "with "
               "those of base and adapters.",
       .commands = kTrain | kMerge},
      {.name = "max_shard_size",
       .slot = slot<&OutputConfig::max_shard_size>,
       .help =
           "Largest safetensors file of a fully fine-tuned, merged or quantized model. With the default a merged model "
           "has its base's files.",
       .commands = kTrain | kMerge | kQuantize,
       .text_format = TextFormat::kBytes},
      {.name = "log_level",
       .slot = slot<&OutputConfig::log_level>,
       .help = "Least level of the log lines on standard error.",
       .commands = kAll,
       .choices = {"debug", "info", "warning", "error"},
       .value_aliases = {{"passive", "info"}, {"critical", "error"}}},
  };
}

std::vector<Option> eval_options() {
  return {
      {.name = "per_record",
       .slot = slot<&EvalConfig::per_record>,
       .help = "File for one JSON line a record with its place in its file and its loss.",
       .commands = kEval},
      {.name = "logits_file",
       .slot = slot<&EvalConfig::logits_file>,
       .help =
           "Safetensors file for the float32 logits: tensor record.<i> [tokens, vocabulary] for the record at place "
           "i of its file, record.<i>.<part> where bfd_split made several documents of it.",
       .commands = kEval},
      {.name = "compare",
       .slot = slot<&EvalConfig::compare>,
       .help = "More models to evaluate on the same records and to show side by side: folders or hub names of models, "
               "quantized ones too, or of adapters of model_name_or_path.",
       .commands = kEval,
       .list_syntax = ListSyntax::kPaths},
      {.name = "task_file",
       .slot = slot<&EvalConfig::task_file>,
       .help = "Multiple-choice task, one JSON line an item: context, choices, gold (the right choice's index). The "
               "choice that the model finds most likely counts, as in lm-evaluation-harness.",
       .commands = kEval},
      {.name = "task_output",
       .slot = slot<&EvalConfig::task_output>,
       .help = "File for one JSON line an item of task_file with the likelihood of each choice.",
       .commands = kEval},
  };
}

std::vector<Option> generation_options() {
  return {
      {.name = "prompt",
       .slot = slot<&GenerationConfig::prompt>,
       .help = "The user's text; - reads it from standard input.",
       .commands = kGenerate},
      {.name = "prompts_file",
       .slot = slot<&GenerationConfig::prompts_file>,
       .help = "Many prompts to answer into output: a .jsonl file with a prompt in each line, or text with one a line.",
       .commands = kGenerate},
      {.name = "system_prompt",
       .slot = slot<&GenerationConfig::system_prompt>,
       .help = "The system message before the user's text.",
       .commands = kAnswer},
      {.name = "raw_prompt",
       .slot = slot<&GenerationConfig::raw_prompt>,
       .help = "Continue the prompt's text as it is, without a template.",
       .commands = kGenerate},
      {.name = "max_new_tokens",
       .slot = slot<&GenerationConfig::max_new_tokens>,
       .help = "Stop after this many generated tokens.",
       .commands = kAnswer,
       .range = between(1, 16777216)},
      {.name = "do_sample",
       .slot = slot<&GenerationConfig::do_sample>,
       .help = "Draw tokens at random; false: always the likeliest.",
       .commands = kAnswer},
      {.name = "temperature",
       .slot = slot<&GenerationConfig::temperature>,
       .help = "Divides the logits before sampling.",
       .commands = kAnswer,
       .range = between(0.0001, 10000)},
      {.name = "top_k",
       .slot = slot<&GenerationConfig::top_k>,
       .help = "Sample among this many likeliest tokens; 0: among all.",
       .commands = kAnswer,
       .range = at_least(0)},
      {.name = "top_p",
       .slot = slot<&GenerationConfig::top_p>,
       .help = "Sample among the likeliest tokens that together have this probability.",
       .commands = kAnswer,
       .range = {.minimum = 0, .maximum = 1, .minimum_excluded = true}},
      {.name = "min_p",
       .slot = slot<&GenerationConfig::min_p>,
       .help = "Sample among tokens of at least this part of the likeliest one's probability.",
       .commands = kAnswer,
       .range = between(0, 1)},
      {.name = "repetition_penalty",
       .slot = slot<&GenerationConfig::repetition_penalty>,
       .help = "Above 1, tokens that already occurred become less likely.",
       .commands = kAnswer,
       .range = between(0.0001, 10000)},
      {.name = "stop_strings",
       .slot = slot<&GenerationConfig::stop_strings>,
       .help = "The answer ends where one of these texts appears; write several as a JSON array.",
       .commands = kAnswer,
       .list_syntax = ListSyntax::kTexts},
  };
}

std::vector<Option> preprocess_options() {
  return {
      {.name = "output",
       .slot = slot<&PreprocessConfig::output>,
       .help = "fettle preprocess: file for one JSON line a document with text, input_ids and labels; an existing file "
               "is replaced only if it is one of these. fettle download: file for the training records, by its name "
               "as .json, .jsonl or .csv. fettle generate: file for the answers to prompts_file. fettle export: the "
               ".gguf file.",
       .commands = kPreprocess | kDownload | kGenerate | kExport},
      {.name = "overwrite_output",
       .slot = slot<&PreprocessConfig::overwrite_output>,
       .help = "Replace output if it is there.",
       .commands = kGenerate | kExport},
      {.name = "preview_samples",
       .slot = slot<&PreprocessConfig::preview_samples>,
       .help = "Documents shown on a terminal with their target text in colour.",
       .commands = kPreprocess,
       .range = at_least(0)},
      {.name = "refresh",
       .slot = slot<&PreprocessConfig::refresh>,
       .help =
           "Ask the hub for a branch's newest commit; false: what the cache holds whole is taken as it is, so that a "
           "run which is started again finds the model that it began with.",
       .commands = kDownload},
  };
}

std::vector<Option> device_options() {
  return {
      {.name = "device",
       .slot = slot<&DeviceConfig::device>,
       .help = "Where to compute: cpu, cuda (an NVIDIA GPU) or hpu (an Intel Gaudi card); auto: an accelerator where "
               "there is one and this build can use it, else the CPU.",
       .commands = kCompute,
       .choices = {"auto", "cpu", "cuda", "hpu"}},
      {.name = "num_threads",
       .slot = slot<&DeviceConfig::num_threads>,
       .help = "Compute threads; 0: one a physical core that the process may use.",
       .commands = kCompute,
       .range = between(0, 4096)},
      {.name = "fused_ops",
       .slot = slot<&DeviceConfig::fused_ops>,
       .help = "Compute with Fettle's own kernels; false: plain torch operations instead, slow, for checking and bug "
               "reports.",
       .commands = kCompute},
  };
}

std::vector<Option> distributed_options() {
  return {
      {.name = "nproc_per_node",
       .slot = slot<&DistributedConfig::nproc_per_node>,
       .help = "Processes that this command starts on this machine, one an accelerator. Not needed under torchrun, "
               "mpirun or srun, which start them themselves.",
       .commands = kTrain,
       .range = between(1, 1024)},
      {.name = "ddp_timeout",
       .slot = slot<&DistributedConfig::ddp_timeout>,
       .help = "Seconds until all processes of the run must have come together, and for one exchange between them.",
       .commands = kTrain,
       .range = above(0)},
      {.name = "peer_timeout",
       .slot = slot<&DistributedConfig::peer_timeout>,
       .help = "Seconds without a sign of life after which another process of the run counts as lost.",
       .commands = kTrain,
       .range = at_least(2)},
      {.name = "ddp_bucket_cap_mb",
       .slot = slot<&DistributedConfig::ddp_bucket_cap_mb>,
       .help = "MiB of gradients that are exchanged at once, while the backward goes on.",
       .commands = kTrain,
       .range = between(1, 65536)},
      {.name = "zero_stage",
       .slot = slot<&DistributedConfig::zero_stage>,
       .help = "What the processes share out instead of each holding all: 1: the optimizer's state; 2: gradients too; "
               "3: the layers' weights too. Less memory, the same result; a run may resume at another stage.",
       .commands = kTrain,
       .range = between(0, 3)},
      {.name = "section_timeouts",
       .slot = slot<&DistributedConfig::section_timeouts>,
       .help = "Seconds that a part of the run may take before the program stops with a stack trace, for instance "
               "step=600; parts: setup, data, step (a micro-batch), eval (a batch), save, collective; 0: no limit.",
       .commands = kTrain},
  };
}

}  // namespace

std::vector<Option> table::join(std::initializer_list<std::vector<Option>> parts) {
  std::vector<Option> all;
  for (const std::vector<Option>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

const std::vector<Section>& sections() {
  static const std::vector<Section> all = {
      {"Model", model_options()},
      {"LoRA", lora_options()},
      {"Data", table::data_options()},
      {"Training", table::training_options()},
      {"Output", output_options()},
      {"Evaluation (`fettle eval`)", eval_options()},
      {"Generation (`fettle generate`, `fettle chat`)", generation_options()},
      {"Merging (`fettle merge`)", table::merge_options()},
      {"Quantization (`fettle quantize`, or after training)", table::quantization_options()},
      {"Benchmark (`fettle benchmark`, or after training)", table::benchmark_options()},
      {"Export (`fettle export`)", table::export_options()},
      {"Files (`fettle preprocess`, `fettle download`, `fettle generate`, `fettle export`)", preprocess_options()},
      {"Device", device_options()},
      {"Several processes", distributed_options()},
  };
  return all;
}

const Option* find_option(std::string_view name) {
  static const auto index = [] {
    std::unordered_map<std::string_view, const Option*> made;
    for (const Section& section : sections()) {
      for (const Option& option : section.options) made.emplace(option.name, &option);
    }
    return made;
  }();
  const auto found = index.find(name);
  return found == index.end() ? nullptr : found->second;
}

std::string_view to_string(Command command) {
  switch (command) {
    case Command::kTrain:
      return "train";
    case Command::kCheck:
      return "check";
    case Command::kEval:
      return "eval";
    case Command::kGenerate:
      return "generate";
    case Command::kPreprocess:
      return "preprocess";
    case Command::kDownload:
      return "download";
    case Command::kChat:
      return "chat";
    case Command::kMerge:
      return "merge";
    case Command::kQuantize:
      return "quantize";
    case Command::kBenchmark:
      return "benchmark";
    case Command::kExport:
      return "export";
  }
  return "";
}

std::string_view type_name(const Option& option) {
  struct Namer {
    std::string_view operator()(bool*) const { return "boolean"; }
    std::string_view operator()(int64_t*) const { return "integer"; }
    std::string_view operator()(double*) const { return "number"; }
    std::string_view operator()(std::optional<double>*) const { return "number"; }
    std::string_view operator()(std::string*) const { return "string"; }
    std::string_view operator()(std::vector<std::string>*) const { return "list of strings"; }
  };
  Config any;
  return std::visit(Namer{}, option.slot(any));
}

}  // namespace fettle::config
