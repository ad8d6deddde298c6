// SPDX-License-Identifier: Apache-2.0
#include "model/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <iterator>
#include <numeric>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "model/config_reader.h"

namespace fettle::model {
namespace {

enum class Bias { kNever, kAlways, kByKey };         // kByKey: attention_bias, of q, k, v and o
enum class Window { kNone, kEveryLayer, kByLayer };  // kByLayer: use_sliding_window, max_window_layers, layer_types

/// What transformers' configuration and model classes of a family say where config.json is silent.
struct Family {
  std::string_view model_type;
  Bias qkv_bias;
  bool mlp_bias_key;
  bool qk_norm;
  Window window;
  int64_t head_dim;  // 0: hidden_size / num_attention_heads
  int64_t kv_heads;  // 0: num_attention_heads
  int64_t max_positions;
};

constexpr std::array kFamilies = {
    Family{"llama", Bias::kByKey, true, false, Window::kNone, 0, 0, 2048},
    Family{"mistral", Bias::kNever, false, false, Window::kEveryLayer, 0, 8, 131072},
    Family{"qwen2", Bias::kAlways, false, false, Window::kByLayer, 0, 32, 32768},
    Family{"qwen3", Bias::kByKey, false, true, Window::kByLayer, 128, 32, 32768},
};

/// Keys without influence on logits, loss or gradients: names, bookkeeping, initialisation, defaults of generation.
constexpr std::array<std::string_view, 55> kHarmless = {"architectures",
                                                        "attn_implementation",
                                                        "auto_map",
                                                        "bad_words_ids",
                                                        "begin_suppress_tokens",
                                                        "decoder_start_token_id",
                                                        "dtype",
                                                        "early_stopping",
                                                        "finetuning_task",
                                                        "forced_bos_token_id",
                                                        "forced_eos_token_id",
                                                        "gradient_checkpointing",
                                                        "id2label",
                                                        "initializer_range",
                                                        "is_decoder",
                                                        "is_llama_config",
                                                        "keys_to_ignore_at_inference",
                                                        "label2id",
                                                        "length_penalty",
                                                        "max_length",
                                                        "max_sequence_length",
                                                        "min_length",
                                                        "model_max_length",
                                                        "model_type",
                                                        "no_repeat_ngram_size",
                                                        "num_beam_groups",
                                                        "num_beams",
                                                        "num_return_sequences",
                                                        "output_attentions",
                                                        "output_hidden_states",
                                                        "output_scores",
                                                        "prefix",
                                                        "pretraining_tp",
                                                        "problem_type",
                                                        "do_sample",
                                                        "top_k",
                                                        "top_p",
                                                        "remove_invalid_values",
                                                        "repetition_penalty",
                                                        "return_dict",
                                                        "return_dict_in_generate",
                                                        "sep_token_id",
                                                        "suppress_tokens",
                                                        "task_specific_params",
                                                        "temperature",
                                                        "tokenizer_class",
                                                        "torch_dtype",
                                                        "torchscript",
                                                        "transformers.js_config",
                                                        "transformers_version",
                                                        "typical_p",
                                                        "unk_token_id",
                                                        "unsloth_fixed",
                                                        "unsloth_version",
                                                        "use_cache"};

/// Keys that change nothing only as long as they have this value.
struct Required {
  std::string_view key;
  double value;  // of a number; of a boolean 0 or 1
};
constexpr std::array kRequired = {
    Required{"attention_dropout", 0},       Required{"resid_pdrop", 0},           Required{"embd_pdrop", 0},
    Required{"hidden_dropout", 0},          Required{"rope_interleaved", 0},      Required{"use_mrope", 0},
    Required{"is_encoder_decoder", 0},      Required{"add_cross_attention", 0},   Required{"tie_encoder_decoder", 0},
    Required{"chunk_size_feed_forward", 0}, Required{"partial_rotary_factor", 1},
};

const Family& family_of(const std::string& model_type) {
  const auto* found = std::ranges::find(kFamilies, model_type, &Family::model_type);
  if (found == kFamilies.end()) {
    std::vector<std::string_view> names;
    std::ranges::transform(kFamilies, std::back_inserter(names), &Family::model_type);
    throw Error(ExitCode::kConfig, fmt::format("config.json: model_type '{}' is not supported", model_type),
                fmt::format("supported are {}", fmt::join(names, ", ")));
  }
  return *found;
}

void check_required(ConfigReader& config) {
  for (const auto& [key, expected] : kRequired) {
    const nlohmann::json& value = config.raw(key);
    const bool equal = value.is_null() || (value.is_boolean() && value.get<bool>() == (expected != 0)) ||
                       (value.is_number() && value.get<double>() == expected);
    if (!equal) {
      config.fail(key, fmt::format("is {}; this version computes with {} only", value.dump(), expected));
    }
  }
  if (const nlohmann::json& heads = config.raw("pruned_heads"); !heads.is_null() && !heads.empty()) {
    config.fail("pruned_heads", "is not empty; pruned heads are not supported");
  }
  config.ignore("quantization_config");  // hub::read_quantization
}

void read_sizes(ConfigReader& config, const Family& family, DecoderSpec& spec) {
  constexpr Range kSize{1, 1 << 24};
  constexpr Range kCount{1, 1 << 14};
  spec.vocab_size = config.integer("vocab_size", kSize);
  spec.hidden_size = config.integer("hidden_size", kSize);
  spec.intermediate_size = config.integer("intermediate_size", kSize);
  spec.layers = config.integer("num_hidden_layers", kCount);
  spec.heads = config.integer("num_attention_heads", kCount);
  const bool as_many = family.kv_heads == 0 || config.is_null("num_key_value_heads");
  spec.kv_heads = config.integer_or("num_key_value_heads", kCount, as_many ? spec.heads : family.kv_heads);
  spec.max_positions = config.integer_or("max_position_embeddings", {1, int64_t{1} << 40}, family.max_positions);
  if (!config.has("head_dim") && family.head_dim == 0 && spec.hidden_size % spec.heads != 0) {
    config.fail("hidden_size",
                fmt::format("{} is not a multiple of num_attention_heads {}", spec.hidden_size, spec.heads));
  }
  spec.head_dim =
      config.integer_or("head_dim", kCount, family.head_dim == 0 ? spec.hidden_size / spec.heads : family.head_dim);
  if (spec.heads % spec.kv_heads != 0) {
    config.fail("num_attention_heads",
                fmt::format("{} is not a multiple of num_key_value_heads {}", spec.heads, spec.kv_heads));
  }
  if (spec.head_dim % 2 != 0) {
    config.fail("head_dim", fmt::format("{} is odd; rotary embedding needs pairs", spec.head_dim));
  }
}

// A query of a layer with a window sees that many keys, itself included.
std::vector<int64_t> read_windows(ConfigReader& config, const Family& family, int64_t layers) {
  std::vector<int64_t> windows(static_cast<size_t>(layers), 0);
  constexpr Range kRange{1, int64_t{1} << 40};
  constexpr int64_t kDefault = 4096;  // of transformers' configuration classes
  if (family.window == Window::kNone) {
    return windows;
  }
  const bool off = config.is_null("sliding_window");
  const int64_t window = config.integer_or("sliding_window", kRange, kDefault);
  if (family.window == Window::kEveryLayer) {
    std::ranges::fill(windows, off ? 0 : window);
    return windows;
  }
  const bool in_use = config.boolean_or("use_sliding_window", false) && !off;
  const int64_t first = config.integer_or("max_window_layers", {0, 1 << 14}, 28);
  const std::vector<std::string> types = config.texts("layer_types");
  if (!types.empty() && std::ssize(types) != layers) {
    config.fail("layer_types", fmt::format("has {} entries for {} layers", types.size(), layers));
  }
  for (size_t i = 0; i < windows.size(); ++i) {
    const std::string type =
        !types.empty() ? types[i]
                       : (in_use && static_cast<int64_t>(i) >= first ? "sliding_attention" : "full_attention");
    if (type != "sliding_attention" && type != "full_attention") {
      config.fail("layer_types", fmt::format("holds '{}'; known are full_attention and sliding_attention", type));
    }
    if (type == "sliding_attention" && !in_use) {
      config.fail("layer_types", "asks for sliding_attention while use_sliding_window is not true");
    }
    windows[i] = type == "sliding_attention" ? window : 0;
  }
  return windows;
}

RopeKind rope_kind(ConfigReader& rope) {
  const std::string old_name = rope.text_or("type", "default");
  const std::string name = rope.text_or("rope_type", old_name);
  constexpr std::array<std::pair<std::string_view, RopeKind>, 5> kKinds = {{{"default", RopeKind::kDefault},
                                                                            {"linear", RopeKind::kLinear},
                                                                            {"dynamic", RopeKind::kDynamic},
                                                                            {"llama3", RopeKind::kLlama3},
                                                                            {"yarn", RopeKind::kYarn}}};
  const auto* found = std::ranges::find(kKinds, name, &std::pair<std::string_view, RopeKind>::first);
  if (found == kKinds.end()) {
    rope.fail("rope_type",
              fmt::format("'{}' is not supported; known are default, linear, dynamic, llama3, yarn", name));
  }
  return found->second;
}

// Both spellings: rope_theta + rope_scaling (up to transformers 4) and rope_parameters (since 5).
RopeSpec read_rope(ConfigReader& config, const DecoderSpec& spec) {
  const nlohmann::json& scaling = config.raw("rope_scaling");
  const nlohmann::json& parameters = config.raw("rope_parameters");
  const bool old_style = !scaling.is_null() && !scaling.empty();  // as transformers' `rope_scaling or rope_parameters`
  static const nlohmann::json kNothing = nlohmann::json::object();
  ConfigReader rope(old_style ? scaling : (parameters.is_null() ? kNothing : parameters),
                    old_style ? "config.json: rope_scaling" : "config.json: rope_parameters");
  constexpr Range kLength{1, int64_t{1} << 40};
  RopeSpec result;
  result.kind = rope_kind(rope);
  result.theta = rope.positive_or("rope_theta", config.positive_or("rope_theta", 10000.0));
  result.rotary_dim = spec.head_dim;
  result.max_positions = spec.max_positions;
  if (rope.positive_or("partial_rotary_factor", 1.0) != 1.0) {
    rope.fail("partial_rotary_factor", "is not 1; no supported family rotates a part of a head");
  }
  if (result.kind != RopeKind::kDefault) {
    result.factor = rope.positive("factor");
  }
  if (result.kind == RopeKind::kLlama3 || result.kind == RopeKind::kYarn) {
    const int64_t inside = rope.integer_or("original_max_position_embeddings", kLength, spec.max_positions);
    result.original_max_positions = config.integer_or("original_max_position_embeddings", kLength, inside);
  }
  if (result.kind == RopeKind::kLlama3) {
    result.low_freq_factor = rope.positive("low_freq_factor");
    result.high_freq_factor = rope.positive("high_freq_factor");
    if (result.high_freq_factor <= result.low_freq_factor) {
      rope.fail("high_freq_factor", "is not above low_freq_factor");
    }
  }
  if (result.kind == RopeKind::kYarn) {
    result.beta_fast = rope.positive_or("beta_fast", 32.0);
    result.beta_slow = rope.positive_or("beta_slow", 1.0);
    result.truncate = rope.boolean_or("truncate", true);
    result.attention_factor = rope.optional_positive("attention_factor");
    result.mscale = rope.optional_positive("mscale");
    result.mscale_all_dim = rope.optional_positive("mscale_all_dim");
  }
  if (result.kind == RopeKind::kDynamic) {
    rope.ignore("original_max_position_embeddings");  // written by some models, read by nobody
  }
  rope.refuse_unread();
  return result;
}

}  // namespace

DecoderSpec DecoderSpec::from_config(const nlohmann::json& hf_config) {
  ConfigReader config(hf_config, "config.json");
  DecoderSpec spec;
  spec.model_type = config.text_or("model_type", "");
  const Family& family = family_of(spec.model_type);
  std::ranges::for_each(kHarmless, [&](std::string_view key) { config.ignore(key); });
  check_required(config);
  read_sizes(config, family, spec);
  if (const std::string activation = config.text_or("hidden_act", "silu"); activation != "silu") {
    config.fail("hidden_act", fmt::format("is '{}'; only silu is supported", activation));
  }
  spec.norm_eps = config.positive_or("rms_norm_eps", 1e-6);
  const bool attention_bias = family.qkv_bias == Bias::kByKey && config.boolean_or("attention_bias", false);
  spec.qkv_bias = family.qkv_bias == Bias::kAlways || attention_bias;
  spec.output_bias = attention_bias;
  spec.mlp_bias = family.mlp_bias_key && config.boolean_or("mlp_bias", false);
  spec.qk_norm = family.qk_norm;
  spec.tied_embeddings = config.boolean_or("tie_word_embeddings", false);
  spec.windows = read_windows(config, family, spec.layers);
  spec.rope = read_rope(config, spec);
  spec.quantization = hub::read_quantization(hf_config);
  const auto first = [](const std::vector<int64_t>& ids) {
    return ids.empty() ? std::nullopt : std::optional(ids.front());
  };
  spec.bos_id = first(config.ids("bos_token_id"));
  spec.pad_id = config.raw("pad_token_id") == -1 ? std::nullopt : first(config.ids("pad_token_id"));
  spec.eos_ids = config.ids("eos_token_id");
  config.refuse_unread();
  return spec;
}

std::vector<TensorShape> expected_tensors(const DecoderSpec& spec) {
  const int64_t queries = spec.heads * spec.head_dim;
  const int64_t keys = spec.kv_heads * spec.head_dim;
  std::vector<TensorShape> tensors{{"model.embed_tokens.weight", {spec.vocab_size, spec.hidden_size}}};
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    tensors.push_back({name + ".weight", {out, in}});
    if (bias) {
      tensors.push_back({name + ".bias", {out}});
    }
  };
  for (int64_t i = 0; i < spec.layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    tensors.push_back({layer + "input_layernorm.weight", {spec.hidden_size}});
    linear(layer + "self_attn.q_proj", queries, spec.hidden_size, spec.qkv_bias);
    linear(layer + "self_attn.k_proj", keys, spec.hidden_size, spec.qkv_bias);
    linear(layer + "self_attn.v_proj", keys, spec.hidden_size, spec.qkv_bias);
    if (spec.qk_norm) {
      tensors.push_back({layer + "self_attn.q_norm.weight", {spec.head_dim}});
      tensors.push_back({layer + "self_attn.k_norm.weight", {spec.head_dim}});
    }
    linear(layer + "self_attn.o_proj", spec.hidden_size, queries, spec.output_bias);
    tensors.push_back({layer + "post_attention_layernorm.weight", {spec.hidden_size}});
    linear(layer + "mlp.gate_proj", spec.intermediate_size, spec.hidden_size, spec.mlp_bias);
    linear(layer + "mlp.up_proj", spec.intermediate_size, spec.hidden_size, spec.mlp_bias);
    linear(layer + "mlp.down_proj", spec.hidden_size, spec.intermediate_size, spec.mlp_bias);
  }
  tensors.push_back({"model.norm.weight", {spec.hidden_size}});
  if (!spec.tied_embeddings) {
    linear("lm_head", spec.vocab_size, spec.hidden_size, false);
  }
  return tensors;
}

bool is_in_layer(std::string_view name) {
  return name.starts_with("model.layers.");
}

std::string module_of(const std::string& tensor) {
  return tensor.substr(0, tensor.rfind('.'));
}

int64_t parameter_count(const DecoderSpec& spec) {
  int64_t count = 0;
  for (const TensorShape& tensor : expected_tensors(spec)) {
    count += std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  }
  return count;
}

double training_flops_per_token(const DecoderSpec& spec, double context, bool full) {
  const auto width = static_cast<double>(spec.heads * spec.head_dim);
  const auto keys = static_cast<double>(spec.kv_heads * spec.head_dim);
  const auto hidden = static_cast<double>(spec.hidden_size);
  const double layer = hidden * (2 * width + 2 * keys + 3 * static_cast<double>(spec.intermediate_size));
  const double weights = static_cast<double>(spec.layers) * layer + hidden * static_cast<double>(spec.vocab_size);
  const double attention = 3 * 4 * width * context * static_cast<double>(spec.layers);
  return (full ? 6 : 4) * weights + attention;
}

}  // namespace fettle::model
