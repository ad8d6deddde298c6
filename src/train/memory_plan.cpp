// SPDX-License-Identifier: Apache-2.0
#include "train/memory_plan.h"

#include <algorithm>
#include <numeric>

#include "ops/attention.h"
#include "ops/linear_cross_entropy.h"
#include "ops/quantized_weight.h"
#include "train/inputs.h"

namespace fettle::train {
namespace {

constexpr double kFloatBytes = 4;
/// Code and data of the program and its libraries, and oneDNN's compiled kernels. How much of the libraries' files is
/// in memory differs by some 30 MB with what else the machine has read.
constexpr double kProgramBytes = 230e6;
/// CUDA's context and the libraries' workspaces.
constexpr double kCudaBytes = 800e6;
/// What the allocator holds above the tensors that are alive: blocks of a step do not fit the holes of the last
/// exactly.
constexpr double kAllocator = 1.13;

/// Elements that a layer keeps of a token for its backward: the residual stream and its norm twice; queries, keys,
/// values and what attention mixed; gate, up and their product.
double kept_elements(const model::DecoderSpec& spec) {
  const auto width = static_cast<double>(spec.heads * spec.head_dim);
  const auto keys = static_cast<double>(spec.kv_heads * spec.head_dim);
  return 4 * static_cast<double>(spec.hidden_size) + 2 * width + 2 * keys +
         3 * static_cast<double>(spec.intermediate_size);
}

/// Bytes of the layers' activations at the start of the backward.
double activation_bytes(const model::DecoderSpec& spec, double tokens, double element, bool recomputes) {
  const double layer = tokens * element * kept_elements(spec);
  const auto layers = static_cast<double>(spec.layers);
  if (!recomputes) return layers * layer;
  const double inputs = layers * tokens * element * static_cast<double>(spec.hidden_size);
  // One layer is computed again, and the gradients of its activations stand beside them.
  return inputs + 2 * layer;
}

/// Buffers of ops/attention.cpp: a document's head a thread, and the gradients of keys and values, query head by query
/// head, of one document's head a thread at least.
double attention_bytes(const model::DecoderSpec& spec, const PlannedRun& run, double element) {
  const double head = static_cast<double>(run.longest * spec.head_dim);
  const auto busy = static_cast<double>(std::min(run.threads, spec.heads));
  const double parts = 2 * kFloatBytes * static_cast<double>(run.tokens * spec.heads * spec.head_dim);
  return busy * head * (4 * element + kFloatBytes) +
         std::min(parts, std::max(ops::kAttentionPartBytes, busy * head * 2 * kFloatBytes));
}

/// Torch's flash attention takes bfloat16 and heads in steps of 8; without it the weights [H, L, L] of every layer are
/// kept.
double gpu_attention_bytes(const model::DecoderSpec& spec, const PlannedRun& run, double element, bool recomputes) {
  const bool is_flash = element < kFloatBytes && spec.head_dim % 8 == 0 && spec.head_dim <= 256;
  if (is_flash) return 0;
  const double layer = static_cast<double>(spec.heads * run.longest * run.tokens) * element;
  return recomputes ? layer : static_cast<double>(spec.layers) * layer;
}

/// Weights of the layers' matrices, which are what load_in_8bit and load_in_4bit change, and of the largest of them.
struct Matrices {
  double all = 0;
  double largest = 0;
};
Matrices matrices(const model::DecoderSpec& spec) {
  Matrices count;
  for (const model::TensorShape& tensor : model::expected_tensors(spec)) {
    if (!tensor.name.ends_with("_proj.weight")) continue;
    const auto weights = static_cast<double>(tensor.shape[0] * tensor.shape[1]);
    count.all += weights;
    count.largest = std::max(count.largest, weights);
  }
  return count;
}

double bytes_a_weight(ops::WeightFormat format) {
  if (format == ops::WeightFormat::kFp8) return 1;
  const double scale = kFloatBytes / static_cast<double>(ops::kQuantizationBlock);
  return (format == ops::WeightFormat::kInt8 ? 1.0 : 0.5) + scale;
}

/// As ops::GroupedWeight keeps them: codes of 2, 4 or 8 bits, scales in float32, zeros in a byte.
double bytes_a_weight(const hub::Quantization& quantization) {
  const double code = quantization.bits <= 2 ? 0.25 : quantization.bits <= 4 ? 0.5 : 1.0;
  const double group = quantization.group == -1 ? 1024 : static_cast<double>(quantization.group);
  return code + (kFloatBytes + 1) / group;
}

/// What the base takes: pages of its file where they are what the model computes with, else memory of its own.
void add_base(MemoryPlan& plan, const model::DecoderSpec& spec, const config::Config& config, const PlannedRun& run) {
  const double element = config.training.bf16 ? 2 : kFloatBytes;
  const bool is_shared = run.processes > 1 && config.distributed.zero_stage == 3;
  const double share = is_shared ? 1 / static_cast<double>(run.processes) : 1;
  const auto weights = static_cast<double>(model::parameter_count(spec));
  const std::optional<ops::WeightFormat> format = weight_format(config.model);
  const bool is_quantized = format || spec.quantization;
  const Matrices quantized = is_quantized ? matrices(spec) : Matrices{};
  const double whole = weights - quantized.all;
  if (!config.lora.use_peft) {
    // In float32 the trained weights are what the model computes with.
    if (element < kFloatBytes) plan.parts.push_back({"weights to compute with", weights * element * share});
  } else if (run.is_mapped) {
    plan.parts.push_back({"the base's file, mapped", run.stored_bytes * whole / weights * share, !is_shared});
  } else {
    plan.parts.push_back({"weights to compute with", whole * element * share});
  }
  if (!is_quantized) return;
  plan.parts.push_back(
      {"quantized weights", quantized.all * (format ? bytes_a_weight(*format) : bytes_a_weight(*spec.quantization))});
  plan.parts.push_back({"one of them expanded", quantized.largest * element});
}

}  // namespace

double MemoryPlan::peak_bytes(int64_t processes) const {
  return std::accumulate(parts.begin(), parts.end(), 0.0, [&](double sum, const MemoryPart& part) {
    return sum + part.bytes * (part.is_common ? 1.0 : static_cast<double>(processes));
  });
}

MemoryPlan plan_memory(const model::DecoderSpec& spec, const config::Config& config, const PlannedRun& run) {
  const config::TrainingConfig& training = config.training;
  const double element = training.bf16 ? 2 : kFloatBytes;
  const auto trained = static_cast<double>(run.trained_weights);
  const bool is_full = !config.lora.use_peft;
  const int64_t stage = run.processes > 1 ? config.distributed.zero_stage : 0;
  const auto shared = [&](int64_t from, double bytes) {
    return stage >= from ? bytes / static_cast<double>(run.processes) : bytes;
  };
  const auto vocabulary = static_cast<double>(spec.vocab_size);
  const double row = vocabulary * element;
  const int64_t chunk = ops::cross_entropy_chunk_rows(static_cast<int64_t>(row), run.is_on_gpu ? at::kCUDA : at::kCPU);
  const double logits = row * static_cast<double>(run.is_on_gpu ? std::min(chunk, run.tokens) : chunk);
  const double head_gradient = is_full ? vocabulary * static_cast<double>(spec.hidden_size) * kFloatBytes : 0;
  const bool recomputes = training.gradient_checkpointing || stage == 3;
  const bool copies = !run.is_on_gpu && training.async_save && training.save_strategy != "no" && stage == 0;

  MemoryPlan plan;
  plan.parts.push_back({"the program", run.is_on_gpu ? kCudaBytes : kProgramBytes});
  add_base(plan, spec, config, run);
  plan.parts.push_back({"trained weights in float32", shared(3, trained * kFloatBytes)});
  if (!is_full && element < kFloatBytes) plan.parts.push_back({"the adapter to compute with", trained * element});
  plan.parts.push_back({"gradients", shared(2, trained * kFloatBytes)});
  plan.parts.push_back({"the optimizer's state", shared(1, 2 * trained * kFloatBytes)});
  if (copies) plan.parts.push_back({"a copy for saving (async_save)", checkpoint_bytes(run.trained_weights), true});
  plan.parts.push_back({recomputes ? "activations (recomputed)" : "activations",
                        kAllocator * activation_bytes(spec, static_cast<double>(run.tokens), element, recomputes)});
  plan.parts.push_back({"attention", run.is_on_gpu ? gpu_attention_bytes(spec, run, element, recomputes)
                                                   : attention_bytes(spec, run, element)});
  plan.parts.push_back({"logits", kAllocator * logits + head_gradient});
  return plan;
}

double checkpoint_bytes(int64_t trained_weights) {
  return 3 * kFloatBytes * static_cast<double>(trained_weights);
}

}  // namespace fettle::train
