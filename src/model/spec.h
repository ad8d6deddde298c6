// SPDX-License-Identifier: Apache-2.0
/// What a decoder is, read from a Hugging Face config.json: plain numbers, no weights. A new model family is a row in
/// the table of spec.cpp and a golden test, not a new model.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hub/quantization.h"

namespace fettle::model {

/// Rotary position embedding; kinds and parameters as transformers' modeling_rope_utils.
enum class RopeKind { kDefault, kLinear, kDynamic, kLlama3, kYarn };

struct RopeSpec {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  int64_t rotary_dim = 0;  ///< leading elements of a head that rotate
  double factor = 1.0;
  int64_t max_positions = 0;               ///< dynamic: longer documents change the base
  int64_t original_max_positions = 0;      ///< llama3, yarn: length of the pre-training
  double low_freq_factor = 1.0;            ///< llama3
  double high_freq_factor = 4.0;           ///< llama3
  double beta_fast = 32.0;                 ///< yarn
  double beta_slow = 1.0;                  ///< yarn
  bool truncate = true;                    ///< yarn: round the correction range to whole dimensions
  std::optional<double> attention_factor;  ///< yarn: scale of cos and sin; absent: from factor and mscale
  std::optional<double> mscale;
  std::optional<double> mscale_all_dim;
};

struct DecoderSpec {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  double norm_eps = 1e-6;
  bool qkv_bias = false;
  bool output_bias = false;  ///< of o_proj
  bool mlp_bias = false;
  bool qk_norm = false;  ///< RMSNorm of every query and key head before the rotation (Qwen3)
  bool tied_embeddings = false;
  std::vector<int64_t> windows;  ///< [layers] keys a query sees, itself included; 0: all before it
  RopeSpec rope;
  std::optional<hub::Quantization> quantization;  ///< how the file holds the layers' matrices, if in few bits
  std::optional<int64_t> bos_id;
  std::optional<int64_t> pad_id;
  std::vector<int64_t> eos_ids;

  /// Throws Error{kConfig} for an unknown model_type, for a key that may change the mathematics and is not known to
  /// this version, and for values out of range or contradicting each other, always by the key's name.
  static DecoderSpec from_config(const nlohmann::json& hf_config);
};

/// A tensor of the checkpoint.
struct TensorShape {
  std::string name;  ///< as transformers names it, e.g. model.layers.0.self_attn.q_proj.weight
  std::vector<int64_t> shape;
};

/// Every tensor the model has, in the order of the computation; lm_head.weight is absent if it is tied. Of a quantized
/// model too the plain weights.
std::vector<TensorShape> expected_tensors(const DecoderSpec& spec);

/// Whether a tensor or module is one of a layer's: "model.layers.7.…".
bool is_in_layer(std::string_view name);

/// A tensor's module: its name without the last part.
std::string module_of(const std::string& tensor);

/// Number of weights, tied ones once.
int64_t parameter_count(const DecoderSpec& spec);

/// Model FLOPs of one trained token at a mean attended length of `context` tokens: 2 a weight of every matrix product
/// in the forward, as many for the gradient of its input, and with `full` once more for the gradient of the weight;
/// attention: 4·heads·head_dim·context forward and twice that backward. Recomputation counts for nothing.
double training_flops_per_token(const DecoderSpec& spec, double context, bool full);

}  // namespace fettle::model
