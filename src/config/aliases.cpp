// SPDX-License-Identifier: Apache-2.0
#include "config/aliases.h"

namespace fettle::config {
namespace {

const std::vector<ValueAlias>& true_means_cpu() {
  static const std::vector<ValueAlias> values = {{"true", "cpu"}, {"false", ""}};
  return values;
}

const std::vector<ValueAlias>& dtype_means_bf16() {
  static const std::vector<ValueAlias> values = {{"bfloat16", "true"}, {"bf16", "true"},   {"float32", "false"},
                                                 {"fp32", "false"},    {"float", "false"}, {"auto", ""}};
  return values;
}

constexpr std::string_view kWeightsMapped = "weights are always mapped from the file";
constexpr std::string_view kNoCode = "no code from a model's folder is ever run";
constexpr std::string_view kAttention = "the attention kernel is chosen for the device";
constexpr std::string_view kExchange = "there is one way to exchange gradients";
constexpr std::string_view kPadding = "nothing is padded, but rows on hpu, which computes with one shape";
constexpr std::string_view kGaudi = "it tunes the Gaudi software of the old system";
constexpr std::string_view kLoader = "batches are read from mapped memory";

constexpr std::string_view kLauncher = "start several processes with torchrun --no-python, mpirun or an Indexed Job";
constexpr std::string_view kSharing =
    "start several processes with torchrun --no-python, mpirun or an Indexed Job; zero_stage says what they share out";
constexpr std::string_view kUploadLater = "upload output_dir with another tool";
constexpr std::string_view kUseBf16 = "use bf16: true, or bf16: false for float32";
constexpr std::string_view kFlatScales = "the scales of 4-bit weights are kept in float32";
constexpr std::string_view kRemove = "remove it";

}  // namespace

const std::vector<NameAlias>& name_aliases() {
  static const std::vector<NameAlias> all = {
      // The replaced system.
      {"use_lora", "use_peft"},
      {"lora_rank", "lora_r"},
      {"peft_model_dir", "adapter_name_or_path"},
      {"dataset_concatenation", "packing"},
      {"no_cuda", "device", true_means_cpu()},
      {"use_cpu", "device", true_means_cpu()},
      {"use_habana", "device", {{"true", "hpu"}, {"false", ""}}},
      // transformers, its older names included.
      {"evaluation_strategy", "eval_strategy"},
      {"per_gpu_train_batch_size", "per_device_train_batch_size"},
      {"per_gpu_eval_batch_size", "per_device_eval_batch_size"},
      {"activation_checkpointing", "gradient_checkpointing"},
      {"torch_dtype", "bf16", dtype_means_bf16()},
      {"bnb_4bit_compute_dtype", "bf16", dtype_means_bf16()},
      {"dtype", "bf16", dtype_means_bf16()},
      {"tokenizer_name_or_path", "tokenizer_name"},
      {"revision", "model_revision"},
      // Short names, for the command line of fettle download.
      {"model", "model_name_or_path", {}, Command::kDownload},
      {"dataset", "dataset_name", {}, Command::kDownload},
      {"split", "dataset_split", {}, Command::kDownload},
      // TRL.
      {"max_length", "max_seq_length"},
      {"dataset_config", "dataset_config_name"},
      {"dataset_train_split", "dataset_split"},
      {"dataset_text_field", "text_column"},
      {"dataset_num_proc", "preprocessing_num_workers"},
      {"shuffle_dataset", "shuffle"},
      {"assistant_only_loss", "completion_only_loss"},
      {"chat_template_path", "prompt_template"},
      {"eval_dataset", "validation_file"},
      // PEFT's LoraConfig.
      {"r", "lora_r"},
      {"target_modules", "lora_target_modules"},
      {"exclude_modules", "lora_exclude_modules"},
      {"modules_to_save", "lora_modules_to_save"},
  };
  return all;
}

const std::vector<IgnoredOption>& ignored_options() {
  static const std::vector<IgnoredOption> all = {
      {"trust_remote_code", kNoCode},
      {"use_fast_tokenizer", "there is one tokenizer library"},
      {"use_auth_token", "a token in HF_TOKEN or HF_TOKEN_PATH is always used"},
      {"use_cache", "generation keeps keys and values wherever that is faster, training never does"},
      {"low_cpu_mem_usage", kWeightsMapped},
      {"load_meta_device", kWeightsMapped},
      {"keep_in_memory", "tokenized records are mapped from the cache"},
      {"pad_to_max_length", kPadding},
      {"pad_to_multiple_of", kPadding},
      {"padding_free", kPadding},
      {"group_by_length", kPadding},
      {"train_sampling_strategy", "the order is decided by shuffle and seed"},
      {"use_flash_attention", kAttention},
      {"flash_attention_recompute", kAttention},
      {"flash_attention_causal_mask", kAttention},
      {"attn_implementation", kAttention},
      {"attn_softmax_bf16", "the softmax is always computed in float32"},
      {"use_fused_rope", "the fused kernel is chosen for the device"},
      {"use_liger_kernel", "the fused loss and norms are always on"},
      {"torch_compile", "there is nothing to compile"},
      {"tf32", "it concerns no supported device"},
      {"use_ipex", "the CPU kernels need no extension"},
      {"use_lazy_mode", kGaudi},
      {"use_hpu_graphs", kGaudi},
      {"use_hpu_graphs_for_training", kGaudi},
      {"use_hpu_graphs_for_inference", kGaudi},
      {"gaudi_config_name", kGaudi},
      {"ddp_backend", kExchange},
      {"ddp_find_unused_parameters", kExchange},
      {"ddp_broadcast_buffers", kExchange},
      {"average_tokens_across_devices", "the loss is always the mean over all target tokens of a step"},
      {"gradient_checkpointing_kwargs", "there is one way to recompute"},
      {"dataloader_num_workers", kLoader},
      {"dataloader_pin_memory", kLoader},
      {"dataloader_drop_last", "the last, shorter batch of an epoch is always used"},
      {"remove_unused_columns", "only the columns of the record's format are read"},
      {"disable_tqdm", "progress is drawn only on a terminal"},
      {"task_type", "the task is always causal language modelling"},
      {"lora_task_type", "the task is always causal language modelling"},
      {"save_safetensors", "weights are always saved as safetensors"},
  };
  return all;
}

const std::vector<UnavailableOption>& unavailable_options() {
  static const std::vector<UnavailableOption> all = {
      {"fp16", kUseBf16},
      {"fp16_full_eval", kUseBf16},
      {"token",
       "set HF_TOKEN, or HF_TOKEN_PATH to a file: options end up in logs, saved configurations and ConfigMaps"},
      {"streaming", "give files that fit on the disk"},
      {"push_to_hub", kUploadLater},
      {"hub_model_id", kUploadLater},
      {"hub_token", kUploadLater},
      {"deepspeed", kSharing},
      {"fsdp", kSharing},
      {"fsdp_config", kSharing},
      {"world_size", kLauncher},
      {"local_rank", kLauncher},
      {"use_mpi", kLauncher},
      {"use_deepspeed", kSharing},
      {"use_dora", "use plain LoRA or use_rslora"},
      {"bias", "biases stay frozen"},
      {"lora_bias", "biases stay frozen"},
      {"load_best_model_at_end",
       "set eval_strategy and save_strategy alike and pick the checkpoint from metrics.jsonl"},
      {"use_bnb_nested_quant", kFlatScales},
      {"bnb_4bit_use_double_quant", kFlatScales},
      {"neftune_noise_alpha", kRemove},
      {"label_smoothing_factor", kRemove},
  };
  return all;
}

}  // namespace fettle::config
