// SPDX-License-Identifier: Apache-2.0
#include "train/gguf_metadata.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/log.h"
#include "base/utf8.h"
#include "text/gguf_vocabulary.h"

namespace fettle::train {
namespace {

using model::DecoderSpec;
using model::RopeKind;
using model::RopeSpec;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ExitCode::kConfig, fmt::format("config.json: {}", what),
              "llama.cpp does not compute this model as transformers and Fettle do: keep it as safetensors");
}

/// The window of all layers; 0: none that any text within the model's length would notice.
int64_t common_window(const DecoderSpec& spec) {
  const auto effective = [&](int64_t window) { return window >= spec.max_positions ? 0 : window; };
  const int64_t first = spec.windows.empty() ? 0 : effective(spec.windows.front());
  for (const int64_t window : spec.windows) {
    if (effective(window) != first) refuse("sliding windows in some layers only have no counterpart in llama.cpp");
  }
  return first;
}

/// llama.cpp multiplies YaRN's cos and sin by 1 + 0.1 ln(factor); attn_factor comes on top.
double yarn_attn_factor(const RopeSpec& rope) {
  const auto mscale = [&](double scale) { return rope.factor <= 1 ? 1.0 : 0.1 * scale * std::log(rope.factor) + 1.0; };
  double wanted = mscale(1);
  if (rope.attention_factor) {
    wanted = *rope.attention_factor;
  } else if (rope.mscale && rope.mscale_all_dim) {
    wanted = mscale(*rope.mscale) / mscale(*rope.mscale_all_dim);
  }
  return wanted / mscale(1);
}

void describe_yarn(hub::GgufMetadata& metadata, const std::string& prefix, const RopeSpec& rope) {
  if (!rope.truncate) refuse("yarn with 'truncate' false has no counterpart in llama.cpp");
  metadata.text(prefix + "scaling.type", "yarn");
  metadata.number(prefix + "scaling.factor", rope.factor);
  metadata.integer(prefix + "scaling.original_context_length", rope.original_max_positions);
  metadata.number(prefix + "scaling.yarn_beta_fast", rope.beta_fast);
  metadata.number(prefix + "scaling.yarn_beta_slow", rope.beta_slow);
  if (const double factor = yarn_attn_factor(rope); factor != 1)
    metadata.number(prefix + "scaling.attn_factor", factor);
}

void describe_rope(hub::GgufMetadata& metadata, const std::string& prefix, const DecoderSpec& spec) {
  const RopeSpec& rope = spec.rope;
  metadata.integer(prefix + "dimension_count", rope.rotary_dim);
  metadata.number(prefix + "freq_base", rope.theta);
  switch (rope.kind) {
    case RopeKind::kDefault:
      return;
    case RopeKind::kLinear:
      metadata.text(prefix + "scaling.type", "linear");
      return metadata.number(prefix + "scaling.factor", rope.factor);
    case RopeKind::kYarn:
      return describe_yarn(metadata, prefix, rope);
    case RopeKind::kLlama3:
      // Otherwise 8192 is what a reader of the factors takes for it; llama.cpp has no need of it.
      if (rope.original_max_positions != 8192) {
        metadata.integer(prefix + "scaling.original_context_length", rope.original_max_positions);
      }
      return;
    case RopeKind::kDynamic:
      return log::warning(
          "dynamic rope scaling is not in the GGUF format: beyond {} tokens llama.cpp computes otherwise",
          spec.max_positions);
  }
}

/// Tokens that llama.cpp takes for an answer's end by their text.
bool is_known_stop(std::string_view token) {
  constexpr std::array kStops = {"<|eot_id|>", "<|im_end|>", "<|end|>",    "<end_of_turn>",  "<|endoftext|>",
                                 "</s>",       "<eos>",      "<|eom_id|>", "<|end_of_text|>"};
  return std::ranges::find(kStops, token) != kStops.end();
}

/// The format has room for two more stops, whose names say "end of turn" and "end of message".
void describe_stops(hub::GgufMetadata& metadata, const text::Tokenizer& tokenizer, std::optional<int64_t> eos,
                    const std::vector<int64_t>& stops) {
  std::vector<int64_t> others;
  for (const int64_t id : stops) {
    if (id == eos || id >= tokenizer.vocab_size() || is_known_stop(tokenizer.token(static_cast<int32_t>(id)))) continue;
    if (std::ranges::find(others, id) == others.end()) others.push_back(id);
  }
  constexpr std::array kKeys = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
  for (size_t i = 0; i < std::min(others.size(), kKeys.size()); ++i) metadata.integer(kKeys.at(i), others[i]);
  if (others.size() > kKeys.size()) {
    others.erase(others.begin(), others.begin() + kKeys.size());
    log::warning("tokens {} end an answer too; the GGUF format has no room for more", fmt::join(others, ", "));
  }
}

struct Around {
  std::optional<int64_t> bos;
  std::optional<int64_t> eos;
  bool adds_bos = false;
  bool adds_eos = false;
};

Around tokens_around(const text::Tokenizer& tokenizer, const DecoderSpec& spec) {
  const auto [before, after] = tokenizer.surroundings();
  Around around{tokenizer.bos_id(), tokenizer.eos_id(), !before.empty(), !after.empty()};
  if (!around.bos) around.bos = spec.bos_id;
  if (!around.eos && !spec.eos_ids.empty()) around.eos = spec.eos_ids.front();
  if (before.size() == 1) around.bos = before[0];
  if (before.size() > 1 || after.size() > 1 || (after.size() == 1 && after[0] != around.eos)) {
    throw Error(ExitCode::kConfig,
                fmt::format("the tokenizer puts tokens [{}] before a text and [{}] after it; llama.cpp can put one BOS "
                            "and one EOS",
                            fmt::join(before, ", "), fmt::join(after, ", ")),
                "change the post_processor of tokenizer.json");
  }
  return around;
}

void describe_chat_template(hub::GgufMetadata& metadata, const text::Tokenizer& tokenizer) {
  if (!tokenizer.tool_use_template().empty()) {
    metadata.text("tokenizer.chat_template.tool_use", tokenizer.tool_use_template());
    metadata.texts("tokenizer.chat_templates", std::vector<std::string>{"tool_use"});
  }
  if (tokenizer.has_chat_template()) metadata.text("tokenizer.chat_template", tokenizer.chat_template());
}

void describe_vocabulary(hub::GgufMetadata& metadata, const text::GgufVocabulary& vocabulary) {
  metadata.text("tokenizer.ggml.model", vocabulary.model);
  metadata.text("tokenizer.ggml.pre", vocabulary.pre);
  metadata.texts("tokenizer.ggml.tokens", vocabulary.tokens);
  metadata.integers("tokenizer.ggml.token_type", vocabulary.types);
  if (!vocabulary.merges.empty()) metadata.texts("tokenizer.ggml.merges", vocabulary.merges);
  if (vocabulary.model != "llama") return;
  metadata.numbers("tokenizer.ggml.scores", vocabulary.scores);
  metadata.flag("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix);
  if (!vocabulary.prefix_is_inexact) return;
  if (vocabulary.add_space_prefix) {
    log::warning("llama.cpp puts a space also after each special token, this tokenizer before a text alone");
  } else {
    log::warning(
        "llama.cpp puts no space before a text, this tokenizer before one that begins with no special token: prompt it "
        "through the chat template");
  }
}

}  // namespace

std::string gguf_architecture(const DecoderSpec& spec) {
  const bool llama = spec.model_type == "llama" || spec.model_type == "mistral";
  if (!llama && spec.rope.kind == RopeKind::kLlama3)
    refuse("rope_type 'llama3' is known to llama.cpp of llama models only");
  if (!llama && common_window(spec) != 0) refuse("'use_sliding_window' is not known to llama.cpp for this model type");
  if (spec.model_type == "qwen3" && spec.qkv_bias) refuse("'attention_bias' is not known to llama.cpp for qwen3");
  if (spec.model_type == "qwen2" && spec.heads * spec.head_dim != spec.hidden_size) {
    refuse("'head_dim' other than hidden_size / num_attention_heads is not known to llama.cpp for qwen2");
  }
  return llama ? "llama" : spec.model_type;
}

void describe_file(hub::GgufMetadata& metadata, const std::string& architecture, const std::string& type,
                   const std::string& name) {
  metadata.text("general.architecture", architecture);
  metadata.text("general.type", type);
  metadata.text("general.name", name);
}

void describe_types(hub::GgufMetadata& metadata, hub::DType dtype) {
  constexpr std::array<std::pair<hub::DType, int64_t>, 8> kFileTypes = {{{hub::DType::kF32, 0},
                                                                         {hub::DType::kF16, 1},
                                                                         {hub::DType::kQ4_0, 2},
                                                                         {hub::DType::kQ4_1, 3},
                                                                         {hub::DType::kQ8_0, 7},
                                                                         {hub::DType::kQ5_0, 8},
                                                                         {hub::DType::kQ5_1, 9},
                                                                         {hub::DType::kBF16, 32}}};
  const auto* known = std::ranges::find(kFileTypes, dtype, &std::pair<hub::DType, int64_t>::first);
  metadata.integer("general.file_type", known->second);
  metadata.integer("general.quantization_version", 2);
}

void describe_model(hub::GgufMetadata& metadata, const DecoderSpec& spec) {
  const std::string prefix = gguf_architecture(spec) + ".";
  metadata.integer(prefix + "vocab_size", spec.vocab_size);
  metadata.integer(prefix + "context_length", spec.max_positions);
  metadata.integer(prefix + "embedding_length", spec.hidden_size);
  metadata.integer(prefix + "block_count", spec.layers);
  metadata.integer(prefix + "feed_forward_length", spec.intermediate_size);
  metadata.integer(prefix + "attention.head_count", spec.heads);
  metadata.integer(prefix + "attention.head_count_kv", spec.kv_heads);
  metadata.integer(prefix + "attention.key_length", spec.head_dim);
  metadata.integer(prefix + "attention.value_length", spec.head_dim);
  metadata.number(prefix + "attention.layer_norm_rms_epsilon", spec.norm_eps);
  if (const int64_t window = common_window(spec); window != 0) {
    metadata.integer(prefix + "attention.sliding_window", window);
    log::warning("llama.cpp may attend to all tokens where this model sees the last {}: longer texts differ", window);
  }
  describe_rope(metadata, prefix + "rope.", spec);
}

std::vector<float> rope_factors(const RopeSpec& rope) {
  if (rope.kind != RopeKind::kLlama3) return {};
  std::vector<float> factors;
  for (int64_t i = 0; i < rope.rotary_dim; i += 2) {
    const double wavelength =
        2 * std::numbers::pi * std::pow(rope.theta, static_cast<double>(i) / static_cast<double>(rope.rotary_dim));
    const double turns = static_cast<double>(rope.original_max_positions) / wavelength;
    const double smooth =
        std::clamp((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
    factors.push_back(static_cast<float>(1 / ((1 - smooth) / rope.factor + smooth)));
  }
  return factors;
}

void describe_tokenizer(hub::GgufMetadata& metadata, const text::Tokenizer& tokenizer, const DecoderSpec& spec,
                        const std::vector<int64_t>& stops) {
  const text::GgufVocabulary vocabulary = text::make_gguf_vocabulary(tokenizer, spec.vocab_size);
  describe_vocabulary(metadata, vocabulary);
  const Around around = tokens_around(tokenizer, spec);
  const auto token = [&](const char* name, std::optional<int64_t> id) {
    if (id && *id < spec.vocab_size) metadata.integer(fmt::format("tokenizer.ggml.{}_token_id", name), *id);
  };
  token("bos", around.bos);
  token("eos", around.eos);
  token("unknown", tokenizer.unk_id());
  token("padding", tokenizer.pad_id() ? std::optional<int64_t>(tokenizer.pad_id()) : spec.pad_id);
  metadata.flag("tokenizer.ggml.add_bos_token", around.adds_bos);
  metadata.flag("tokenizer.ggml.add_eos_token", around.adds_eos);
  if (!around.eos)
    log::warning("neither the tokenizer nor config.json names an EOS token; llama.cpp takes one of its own");
  describe_stops(metadata, tokenizer, around.eos, stops);
  describe_chat_template(metadata, tokenizer);
}

}  // namespace fettle::train
