// SPDX-License-Identifier: Apache-2.0
/// GGUF's metadata as a Hugging Face config, and its tensor names as Hugging Face names.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>

#include "base/error.h"
#include "base/utf8.h"
#include "hub/gguf.h"
#include "hub/gguf_format.h"
#include "hub/json.h"

namespace fettle::hub {
namespace {

constexpr const char* kOtherSource = "convert the model again, or use its safetensors folder";

using nlohmann::json;

/// Keys below the architecture's name that are read here or cannot change the result. Any other one is refused.
constexpr std::array<std::string_view, 27> kKnownKeys = {
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "tensor_data_layout",
    "vocab_size",
};

/// Typed access to the metadata below the architecture's name; every message names file and key.
class Metadata {
 public:
  explicit Metadata(const GgufFile& file) : file_(file) {
    const auto found = file.metadata().find("general.architecture");
    const auto* text = found == file.metadata().end() ? nullptr : std::get_if<std::string>(&found->second);
    if (text == nullptr) fail(ExitCode::kData, "general.architecture is missing or not a string");
    const GgufArchitecture* known = find_gguf_architecture(*text);
    if (known == nullptr) {
      fail(ExitCode::kConfig, fmt::format("architecture {} is not supported from GGUF", quote(*text)),
           "llama (with mistral), qwen2 and qwen3 are; use the model's safetensors folder for others");
    }
    architecture_ = *known;
  }

  [[noreturn]] void fail(ExitCode code, const std::string& what, const std::string& hint = kOtherSource) const {
    throw Error(code, fmt::format("{}: {}", file_.name(), what), hint);
  }

  [[nodiscard]] const GgufArchitecture& architecture() const { return architecture_; }
  [[nodiscard]] std::string key(std::string_view suffix) const {
    return fmt::format("{}.{}", architecture_.name, suffix);
  }

  /// A non-negative integer that fits int64_t, of whichever integer type the file uses.
  [[nodiscard]] std::optional<int64_t> find_integer(const std::string& key) const {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (const auto* number = std::get_if<uint64_t>(value); number != nullptr && *number <= INT64_MAX) {
      return static_cast<int64_t>(*number);
    }
    if (const auto* number = std::get_if<int64_t>(value); number != nullptr && *number >= 0) return *number;
    fail(ExitCode::kData, fmt::format("metadata {} is not one non-negative integer", key));
  }

  /// A size that a model needs: present and within what any real model has, so that products of two do not overflow.
  [[nodiscard]] int64_t size(std::string_view suffix) const {
    const auto value = find_integer(key(suffix));
    if (!value) fail(ExitCode::kData, fmt::format("metadata {} is missing", key(suffix)));
    return checked_size(*value, key(suffix));
  }

  [[nodiscard]] int64_t checked_size(int64_t value, const std::string& key) const {
    if (value < 1 || value > INT32_MAX) fail(ExitCode::kData, fmt::format("metadata {} is {}", key, value));
    return value;
  }

  [[nodiscard]] std::optional<double> find_number(const std::string& key) const {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::nullopt;
    const auto* number = std::get_if<double>(value);
    if (number == nullptr || !std::isfinite(*number)) {
      fail(ExitCode::kData, fmt::format("metadata {} is not a finite floating-point number", key));
    }
    return *number;
  }

  [[nodiscard]] std::string find_text(const std::string& key) const {
    const GgufValue* value = find(key);
    if (value == nullptr) return {};
    const auto* text = std::get_if<std::string>(value);
    if (text == nullptr) fail(ExitCode::kData, fmt::format("metadata {} is not a string", key));
    return *text;
  }

  [[nodiscard]] const GgufValue* find(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    return found == file_.metadata().end() ? nullptr : &found->second;
  }

  [[nodiscard]] const TensorView* find_tensor(std::string_view name) const {
    const auto& tensors = file_.tensors();
    const auto found =
        std::find_if(tensors.begin(), tensors.end(), [name](const TensorView& view) { return view.name == name; });
    return found == tensors.end() ? nullptr : &*found;
  }

  /// What would change the result and is not read here is refused, never guessed.
  void refuse_unknown_keys() const {
    const std::string prefix = key("");
    for (const auto& [name, value] : file_.metadata()) {
      if (!name.starts_with(prefix)) continue;
      const std::string_view suffix = std::string_view(name).substr(prefix.size());
      if (std::find(kKnownKeys.begin(), kKnownKeys.end(), suffix) == kKnownKeys.end()) {
        fail(ExitCode::kConfig, fmt::format("metadata {} is not supported", quote(name)),
             "use the model's safetensors folder");
      }
    }
    if (find_integer(key("expert_count")).value_or(0) > 0) {
      fail(ExitCode::kConfig, "mixtures of experts are not supported from GGUF", "use a dense model");
    }
    const GgufValue* causal = find(key("attention.causal"));
    const bool* is_causal = causal == nullptr ? nullptr : std::get_if<bool>(causal);
    if (causal != nullptr && (is_causal == nullptr || !*is_causal)) {
      fail(ExitCode::kConfig, "attention that is not causal is not supported");
    }
    if (find_integer("split.count").value_or(1) > 1) {
      fail(ExitCode::kData, "one part of a split model", "join the parts with llama-gguf-split --merge");
    }
  }

 private:
  const GgufFile& file_;
  GgufArchitecture architecture_;
};

int64_t read_head_dim(const Metadata& metadata, int64_t hidden, int64_t heads) {
  const std::string key = metadata.key("attention.key_length");
  const auto stated = metadata.find_integer(key);
  if (!stated && hidden % heads != 0) {
    metadata.fail(ExitCode::kData,
                  fmt::format("embedding_length {} is not a multiple of head_count {}", hidden, heads));
  }
  const int64_t head_dim = metadata.checked_size(stated.value_or(hidden / heads), key);
  for (const char* suffix : {"attention.value_length", "rope.dimension_count"}) {
    const auto other = metadata.find_integer(metadata.key(suffix));
    if (other && *other != head_dim) {
      metadata.fail(ExitCode::kConfig, fmt::format("metadata {} {} differs from the head size {}", metadata.key(suffix),
                                                   *other, head_dim));
    }
  }
  return head_dim;
}

/// llama.cpp stores Llama 3's rope scaling only as its result, one divisor a frequency. The parameters that Llama 3
/// models use are tried, and accepted if they give these divisors; the length that they were first trained with may be
/// stated.
json infer_llama3_scaling(const Metadata& metadata, const TensorView& factors, const json& config) {
  constexpr double kLow = 1;
  constexpr double kHigh = 4;
  const int64_t head_dim = config["head_dim"];
  const double theta = config["rope_theta"];
  const int64_t original = metadata.find_integer(metadata.key("rope.scaling.original_context_length")).value_or(8192);
  std::vector<float> stored;
  if (head_dim >= 2 && element_count(factors) == head_dim / 2) {
    stored.resize(static_cast<size_t>(head_dim / 2));
    read_floats(factors, stored);
  }
  const double factor = stored.empty() ? 0 : stored.back();
  bool equal = factor >= 1 && std::isfinite(factor);
  for (size_t i = 0; equal && i < stored.size(); ++i) {
    const double wavelength =
        2 * std::numbers::pi * std::pow(theta, 2 * static_cast<double>(i) / static_cast<double>(head_dim));
    const double smooth = std::clamp((static_cast<double>(original) / wavelength - kLow) / (kHigh - kLow), 0.0, 1.0);
    const double expected = 1 / ((1 - smooth) / factor + smooth);
    equal = std::abs(stored[i] - expected) <= 1e-4 * expected;
  }
  if (!equal) {
    metadata.fail(ExitCode::kConfig, "rope_freqs.weight is not the rope scaling of a Llama 3 model",
                  "use the model's safetensors folder");
  }
  return {{"rope_type", "llama3"},
          {"factor", factor},
          {"low_freq_factor", kLow},
          {"high_freq_factor", kHigh},
          {"original_max_position_embeddings", original}};
}

json yarn_scaling(const Metadata& metadata, double factor) {
  for (const char* suffix : {"yarn_attn_factor", "yarn_ext_factor"}) {
    const std::string key = metadata.key(fmt::format("rope.scaling.{}", suffix));
    if (metadata.find_number(key).value_or(1) != 1) {
      metadata.fail(ExitCode::kConfig, fmt::format("metadata {} other than 1 is not supported", key));
    }
  }
  json scaling = {{"rope_type", "yarn"},
                  {"factor", factor},
                  {"beta_fast", metadata.find_number(metadata.key("rope.scaling.yarn_beta_fast")).value_or(32)},
                  {"beta_slow", metadata.find_number(metadata.key("rope.scaling.yarn_beta_slow")).value_or(1)}};
  scaling["original_max_position_embeddings"] = metadata.size("rope.scaling.original_context_length");
  // It comes on top of the factor that YaRN's authors give and llama.cpp applies by itself.
  if (const double own = metadata.find_number(metadata.key("rope.scaling.attn_factor")).value_or(1); own != 1) {
    scaling["attention_factor"] = own * (factor <= 1 ? 1 : 0.1 * std::log(factor) + 1);
  }
  return scaling;
}

/// Null if the model has none.
json read_rope_scaling(const Metadata& metadata, const json& config) {
  const std::string type = metadata.find_text(metadata.key("rope.scaling.type"));
  const std::string old_key = metadata.key("rope.scale_linear");
  const auto old_factor = metadata.find_number(old_key);
  const auto factor = metadata.find_number(metadata.key("rope.scaling.factor"));
  const TensorView* factors = metadata.find_tensor(kGgufRopeFactors);
  if (factors != nullptr) {
    if (!type.empty() && type != "none") {
      metadata.fail(ExitCode::kConfig, "both rope_freqs.weight and rope.scaling.type are given");
    }
    return infer_llama3_scaling(metadata, *factors, config);
  }
  if (type == "yarn" && factor) return yarn_scaling(metadata, *factor);
  if (type == "linear" && factor) return {{"rope_type", "linear"}, {"factor", *factor}};
  if (type.empty() && old_factor && *old_factor != 1) return {{"rope_type", "linear"}, {"factor", *old_factor}};
  if (!type.empty() && type != "none") {
    metadata.fail(ExitCode::kConfig, fmt::format("rope scaling {} without a factor, or unknown", quote(type)),
                  "use the model's safetensors folder");
  }
  return nullptr;
}

int64_t read_vocabulary(const Metadata& metadata) {
  const TensorView* embedding = metadata.find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    metadata.fail(ExitCode::kData, "token_embd.weight is missing or not a matrix");
  }
  const auto stated = metadata.find_integer(metadata.key("vocab_size"));
  if (stated && *stated != embedding->shape[0]) {
    metadata.fail(ExitCode::kData, fmt::format("metadata {} is {}, but token_embd.weight has {} rows",
                                               metadata.key("vocab_size"), *stated, embedding->shape[0]));
  }
  return embedding->shape[0];
}

}  // namespace

json GgufFile::config() const {
  const Metadata metadata(*this);
  metadata.refuse_unknown_keys();
  const int64_t hidden = metadata.size("embedding_length");
  const int64_t heads = metadata.size("attention.head_count");
  const std::string kv_key = metadata.key("attention.head_count_kv");
  const int64_t window = metadata.find_integer(metadata.key("attention.sliding_window")).value_or(0);
  const bool mistral = window > 0 && metadata.architecture().name == "llama";
  const auto epsilon = metadata.find_number(metadata.key("attention.layer_norm_rms_epsilon"));
  if (!epsilon) metadata.fail(ExitCode::kData, "metadata attention.layer_norm_rms_epsilon is missing");
  if (window > 0 && !mistral) metadata.fail(ExitCode::kConfig, "a sliding window is supported for mistral only");

  json config = {
      {"model_type", mistral ? "mistral" : metadata.architecture().name},
      {"architectures", {mistral ? "MistralForCausalLM" : metadata.architecture().hf_class}},
      {"hidden_act", "silu"},
      {"hidden_size", hidden},
      {"intermediate_size", metadata.size("feed_forward_length")},
      {"num_hidden_layers", metadata.size("block_count")},
      {"num_attention_heads", heads},
      {"num_key_value_heads", metadata.checked_size(metadata.find_integer(kv_key).value_or(heads), kv_key)},
      {"head_dim", read_head_dim(metadata, hidden, heads)},
      {"max_position_embeddings", metadata.size("context_length")},
      {"rms_norm_eps", *epsilon},
      {"rope_theta", metadata.find_number(metadata.key("rope.freq_base")).value_or(10000.0)},
      {"vocab_size", read_vocabulary(metadata)},
      {"tie_word_embeddings", metadata.find_tensor("output.weight") == nullptr},
  };
  if (metadata.architecture().name == "llama" && !mistral) {
    config["attention_bias"] = metadata.find_tensor("blk.0.attn_q.bias") != nullptr;
    if (metadata.find_tensor("blk.0.ffn_gate.bias") != nullptr) config["mlp_bias"] = true;
  }
  if (mistral) config["sliding_window"] = window;
  if (json scaling = read_rope_scaling(metadata, config); !scaling.is_null()) config["rope_scaling"] = scaling;
  for (const char* token : {"bos", "eos"}) {
    const auto id = metadata.find_integer(fmt::format("tokenizer.ggml.{}_token_id", token));
    if (id) config[fmt::format("{}_token_id", token)] = *id;
  }
  return config;
}

std::vector<TensorView> GgufFile::model_tensors() const {
  const json settings = config();
  const Metadata metadata(*this);
  const bool interleaved = metadata.architecture().name == "llama";
  std::vector<TensorView> result;
  for (const TensorView& stored : tensors_) {
    if (stored.name == kGgufRopeFactors) continue;
    auto name = hf_tensor_name(stored.name);
    if (!name) {
      metadata.fail(ExitCode::kData, fmt::format("tensor {} has no counterpart in a {} model", quote(stored.name),
                                                 metadata.architecture().name));
    }
    TensorView& view = result.emplace_back(stored);
    view.name = std::move(*name);
    if (!interleaved || (!is_query(view.name) && !is_key(view.name))) continue;
    view.interleaved_heads = settings[is_query(view.name) ? "num_attention_heads" : "num_key_value_heads"];
    if (view.shape.empty() || view.shape[0] % (2 * view.interleaved_heads) != 0) {
      metadata.fail(ExitCode::kData, fmt::format("tensor {}: its rows do not divide into {} heads", quote(stored.name),
                                                 view.interleaved_heads));
    }
  }
  return result;
}

}  // namespace fettle::hub
