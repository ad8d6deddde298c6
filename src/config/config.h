// SPDX-License-Identifier: Apache-2.0
/// The effective configuration of a run: plain data, one struct a section. A function takes the section it needs
/// (`const LoraConfig&`), never the whole. Names, defaults and meaning follow transformers' TrainingArguments, TRL's
/// SFTConfig/ModelConfig and PEFT's LoraConfig; help texts, ranges and aliases are in the option table
/// (option_table.cpp).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fettle::config {

/// Where the model comes from.
struct ModelConfig {
  std::string model_name_or_path;       ///< folder, .gguf file, or hub name
  std::string model_revision = "main";  ///< branch, tag or commit of model_name_or_path on the hub
  std::string config_name;              ///< config.json from another folder or hub name (default: the model's)
  std::string tokenizer_name;           ///< tokenizer from another folder or hub name (default: the model's)
  std::string cache_dir;                ///< hub cache (default: $HF_HUB_CACHE, $HF_HOME/hub, ~/.cache/huggingface/hub)
  std::string adapter_name_or_path;     ///< PEFT adapter to start from, evaluate or generate with
  bool load_in_8bit = false;            ///< keep the base's matrices in 8 bits
  bool load_in_fp8 = false;             ///< in float8, with which a Gaudi computes
  bool load_in_4bit = false;            ///< the same in 4 bits (QLoRA)
  std::string bnb_4bit_quant_type = "nf4";  ///< nf4 fp4 int4
};

/// PEFT's LoraConfig.
struct LoraConfig {
  bool use_peft = true;  ///< false: full fine-tuning
  int64_t lora_r = 16;
  double lora_alpha = 32;
  std::optional<double> lora_dropout;  ///< default 0, or with adapter_name_or_path the adapter's own
  std::vector<std::string> lora_target_modules = {"all-linear"};  ///< names, one regular expression, or all-linear
  std::vector<std::string> lora_exclude_modules;
  std::vector<std::string> lora_modules_to_save;  ///< trained and saved whole, e.g. lm_head, embed_tokens
  bool use_rslora = false;                        ///< scale by alpha/sqrt(r) instead of alpha/r
};

/// What the records are and how they become tokens and targets.
struct DataConfig {
  std::string dataset_name;                  ///< hub name, or folder with train.* and optionally validation.* or test.*
  std::string dataset_config_name;           ///< of a dataset with several configurations
  std::string dataset_split;                 ///< to train on; default train
  std::string dataset_test_split;            ///< to evaluate on; default validation or test if there is one
  std::string dataset_revision = "main";     ///< branch, tag or commit on the hub
  std::vector<std::string> train_file;       ///< json, jsonl, csv, txt or parquet
  std::vector<std::string> validation_file;  ///< same; none: validation_split_percentage of the training records
  std::string dataset_format = "auto";       ///< auto alpaca prompt_completion messages sharegpt text tokenized
  std::string prompt_template = "auto";      ///< auto alpaca llama2 chat none, or a Jinja file
  std::string prompt_with_input;             ///< system sentence of the alpaca template, record with input
  std::string prompt_without_input;          ///< same, record without input
  std::string template_date;                 ///< YYYY-MM-DD: what strftime_now in a chat template is given
  std::string instruction_column = "instruction";
  std::string input_column = "input";
  std::string output_column = "output";
  std::string prompt_column = "prompt";
  std::string completion_column = "completion";
  std::string messages_column = "messages";
  std::string conversations_column = "conversations";
  std::string text_column = "text";
  std::string sample_by = "line";    ///< a .txt file's record: line, paragraph or document
  bool completion_only_loss = true;  ///< false: prompt tokens are targets too
  bool mask_history = false;         ///< true: only the last assistant turn of a chat is a target
  int64_t max_seq_length = 1024;     ///< tokens a document and a packed row may have
  bool packing = true;
  std::string packing_strategy = "bfd";  ///< bfd: a long document is cut off; bfd_split: it becomes several
  bool shuffle = true;
  std::string on_bad_record = "fail";  ///< fail or skip (counted)
  int64_t max_train_samples = -1;      ///< -1: all
  int64_t max_eval_samples = -1;
  double validation_split_percentage = 0;  ///< >= 1: percent; < 1: fraction
  int64_t dataset_seed = 42;               ///< of the split
  int64_t preprocessing_num_workers = 0;   ///< 0: all cores
  std::string dataset_cache_directory;     ///< default: $XDG_CACHE_HOME/fettle or ~/.cache/fettle
  bool overwrite_cache = false;
};

/// The optimizer's and the loop's options: transformers' TrainingArguments.
struct TrainingConfig {
  bool do_train = true;
  bool do_eval = true;                      ///< evaluate before and after training when there are evaluation records
  int64_t per_device_train_batch_size = 8;  ///< rows of max_seq_length tokens when packing, else records
  int64_t per_device_eval_batch_size = 8;
  int64_t gradient_accumulation_steps = 1;
  std::optional<double> learning_rate;  ///< default 2e-4 with LoRA, 2e-5 for full fine-tuning
  std::string lr_scheduler_type = "cosine";
  std::string lr_scheduler_kwargs;  ///< JSON object, e.g. {"num_cycles": 2}
  double warmup_ratio = 0.03;
  double warmup_steps = 0;  ///< >= 1: steps (wins over warmup_ratio); < 1: a ratio, as in transformers 5
  double weight_decay = 0.0;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  double max_grad_norm = 1.0;     ///< 0: no clipping
  double grad_spike_limit = 0.0;  ///< stop at a gradient norm so many times the median of the steps before; 0: never
  double num_train_epochs = 3.0;
  int64_t max_steps = -1;
  std::string optim = "adamw";
  bool bf16 = true;  ///< false: float32
  bool gradient_checkpointing = false;
  double logging_steps = 10;
  bool logging_first_step = true;
  std::string report_to = "none";        ///< none, or tensorboard
  std::string logging_dir;               ///< of event files; empty: runs in output_dir
  int64_t metrics_port = 0;              ///< 0: no server
  int64_t throughput_warmup_steps = -1;  ///< first steps that count for no throughput; -1: as the device needs
  int64_t profile_steps = 0;             ///< steps whose time is taken apart; 0: none
  std::string eval_strategy = "no";      ///< no steps epoch
  double eval_steps = 0;                 ///< 0: logging_steps; < 1: a ratio of all steps
  std::string save_strategy = "steps";   ///< no steps epoch
  double save_steps = 500;
  double save_minutes = 10;      ///< also save after so many minutes without; 0: never
  bool async_save = true;        ///< write checkpoints in the background, from a copy
  int64_t save_total_limit = 2;  ///< 0: keep all
  int64_t seed = 42;             ///< of LoRA's initial weights, dropout and the training order
};

/// Where results go.
struct OutputConfig {
  std::string output_dir;
  bool overwrite_output_dir = false;
  std::string resume_from_checkpoint = "auto";  ///< auto, none, or a checkpoint folder
  bool verify_saved_model = true;               ///< read the result back and compare its loss before "done"
  std::string max_shard_size = "5GB";           ///< of a full model's safetensors
  std::string log_level = "info";
};

/// `fettle eval`.
struct EvalConfig {
  std::string per_record;   ///< JSONL file: one line a record with its loss
  std::string logits_file;  ///< safetensors file: float32 `record.<i>` [T, V], i the record's place in the file
  std::vector<std::string> compare;  ///< more models, or adapters of the same base, on the same records
  std::string task_file;             ///< JSONL: context, choices, gold
  std::string task_output;           ///< JSONL file: one line an item of task_file with its likelihoods
};

/// `fettle generate` and `fettle chat`.
struct GenerationConfig {
  std::string prompt;        ///< the user's text; - reads standard input
  std::string prompts_file;  ///< many: JSONL with prompt, or a text file with one a line
  std::string system_prompt;
  bool raw_prompt = false;  ///< the prompt's text is continued as it is, without a template
  int64_t max_new_tokens = 128;
  bool do_sample = false;
  double temperature = 1.0;
  int64_t top_k = 50;  ///< 0: all
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  std::vector<std::string> stop_strings;  ///< any of them in the answer ends it
};

/// `fettle merge`.
struct MergeConfig {
  std::vector<std::string> merge_adapters;  ///< "adapter" or "adapter=weight"; added to adapter_name_or_path
};

/// Weight-only quantization: `fettle quantize`, or after training. woq_* as the replaced system called them.
struct QuantizationConfig {
  bool do_quantize = false;
  std::string quantize_output_dir;    ///< after training; empty: quantized in output_dir
  int64_t woq_bits = 8;               ///< 1 … 8
  int64_t woq_group_size = -1;        ///< inputs that share a scale; -1: all of a row
  std::string woq_scheme = "sym";     ///< sym or asym
  std::string woq_algo = "RTN";       ///< RTN GPTQ AWQ TEQ
  std::string woq_format = "auto";    ///< auto compressed-tensors gptq gptq_v2 awq
  double max_perplexity_ratio = 1.5;  ///< more, after ÷ before, is an error; 0: never
  int64_t calibration_samples = 128;  ///< rows of calibration_length tokens
  int64_t calibration_length = 512;   ///< tokens
  bool act_order = true;              ///< GPTQ: columns with the largest activations first
  bool static_groups = true;          ///< GPTQ: ranges are found before, for neighbouring columns
  bool gptq_clip = true;              ///< GPTQ with static_groups: also search for a smaller range
  double damp_percent = 0.01;         ///< GPTQ: added to the Hessian's diagonal, relative to its mean
  int64_t gptq_block_size = 128;      ///< GPTQ: columns whose error is passed on at once
  bool awq_clip = true;               ///< AWQ: also search for a smaller range
  int64_t awq_grid_size = 20;         ///< AWQ: scales that are tried
  int64_t teq_steps = 50;             ///< TEQ: steps of training a layer's scales
  double teq_learning_rate = 1e-2;    ///< TEQ
};

/// `fettle benchmark`, or after training.
struct BenchmarkConfig {
  bool do_benchmark = false;
  int64_t benchmark_warmup = 10;
  int64_t benchmark_iterations = 100;
  int64_t benchmark_cores_per_instance = 0;  ///< 0: all, shared out among the instances
  int64_t benchmark_num_instances = 1;       ///< processes side by side
  int64_t benchmark_batch_size = 1;          ///< sequences generated together
  int64_t benchmark_input_tokens = 128;
  int64_t benchmark_output_tokens = 32;
  std::string benchmark_output;  ///< JSON file
};

/// `fettle export`.
struct ExportConfig {
  std::string gguf_type = "f16";  ///< f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1
};

/// `fettle preprocess`, `fettle download` and others that write one file.
struct PreprocessConfig {
  std::string output;  ///< the file
  bool overwrite_output = false;
  int64_t preview_samples = 3;  ///< records shown in colour on a terminal
  bool refresh = true;          ///< `fettle download`: ask whether a branch has moved on
};

/// The machine.
struct DeviceConfig {
  std::string device = "auto";  ///< auto cpu cuda hpu
  int64_t num_threads = 0;      ///< 0: one a physical core that this process may use
  bool fused_ops = true;        ///< false: plain torch operations in place of Fettle's kernels
};

/// Several processes of one run, as torchrun, mpirun or Kubernetes start them.
struct DistributedConfig {
  int64_t nproc_per_node = 1;      ///< processes that `fettle train` starts on this machine
  double ddp_timeout = 1800;       ///< seconds until all have come together, and for one exchange between them
  double peer_timeout = 20;        ///< seconds without a sign of life after which a process counts as lost
  int64_t ddp_bucket_cap_mb = 25;  ///< MiB of gradients that are exchanged at once
  int64_t zero_stage = 0;          ///< what the processes share out: 1 optimizer state, 2 gradients too, 3 weights too
  std::vector<std::string> section_timeouts;  ///< "section=seconds", for the watchdog
};

struct Config {
  ModelConfig model;
  LoraConfig lora;
  DataConfig data;
  TrainingConfig training;
  OutputConfig output;
  EvalConfig eval;
  GenerationConfig generation;
  MergeConfig merge;
  QuantizationConfig quantization;
  BenchmarkConfig benchmark;
  ExportConfig gguf_export;
  PreprocessConfig preprocess;
  DeviceConfig device;
  DistributedConfig distributed;
};

}  // namespace fettle::config
