// SPDX-License-Identifier: Apache-2.0
#include "hub/gguf_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/error.h"

namespace fettle::hub {
namespace {

constexpr GgufTensorType kTensorTypes[] = {
    {0, "f32", DType::kF32},
    {1, "f16", DType::kF16},
    {2, "q4_0", DType::kQ4_0},
    {3, "q4_1", DType::kQ4_1},
    {6, "q5_0", DType::kQ5_0},
    {7, "q5_1", DType::kQ5_1},
    {8, "q8_0", DType::kQ8_0},
    {9, "q8_1", {}},
    {10, "q2_k", {}},
    {11, "q3_k", {}},
    {12, "q4_k", {}},
    {13, "q5_k", {}},
    {14, "q6_k", {}},
    {15, "q8_k", {}},
    {16, "iq2_xxs", {}},
    {17, "iq2_xs", {}},
    {18, "iq3_xxs", {}},
    {19, "iq1_s", {}},
    {20, "iq4_nl", {}},
    {21, "iq3_s", {}},
    {22, "iq2_s", {}},
    {23, "iq4_xs", {}},
    {24, "i8", {}},
    {25, "i16", {}},
    {26, "i32", {}},
    {27, "i64", {}},
    {28, "f64", {}},
    {29, "iq1_m", {}},
    {30, "bf16", DType::kBF16},
    {34, "tq1_0", {}},
    {35, "tq2_0", {}},
    {39, "mxfp4", {}},
    {40, "nvfp4", {}},
    {41, "q1_0", {}},
};

constexpr std::array<GgufArchitecture, 3> kArchitectures = {
    {{"llama", "LlamaForCausalLM"}, {"qwen2", "Qwen2ForCausalLM"}, {"qwen3", "Qwen3ForCausalLM"}}};

struct NamePair {
  std::string_view gguf;
  std::string_view hf;
};
constexpr std::array<NamePair, 3> kModelNames = {
    {{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}}};
constexpr std::array<NamePair, 11> kBlockNames = {{{"attn_norm", "input_layernorm"},
                                                   {"ffn_norm", "post_attention_layernorm"},
                                                   {"attn_q", "self_attn.q_proj"},
                                                   {"attn_k", "self_attn.k_proj"},
                                                   {"attn_v", "self_attn.v_proj"},
                                                   {"attn_output", "self_attn.o_proj"},
                                                   {"attn_q_norm", "self_attn.q_norm"},
                                                   {"attn_k_norm", "self_attn.k_norm"},
                                                   {"ffn_gate", "mlp.gate_proj"},
                                                   {"ffn_up", "mlp.up_proj"},
                                                   {"ffn_down", "mlp.down_proj"}}};

/// One direction of the names: which spelling is looked up and which is the result.
struct Direction {
  std::string_view NamePair::*from;
  std::string_view NamePair::*to;
  std::string_view from_block;  ///< what stands before a block's number
  std::string_view to_block;
};
constexpr Direction kToHf = {&NamePair::gguf, &NamePair::hf, "blk.", "model.layers."};
constexpr Direction kToGguf = {&NamePair::hf, &NamePair::gguf, "model.layers.", "blk."};

template <size_t N>
std::optional<std::string_view> find_name(const std::array<NamePair, N>& names, std::string_view module,
                                          const Direction& direction) {
  const auto* found = std::ranges::find(names, module, direction.from);
  return found == names.end() ? std::nullopt : std::optional((*found).*direction.to);
}

std::optional<std::string> translate_module(std::string_view module, const Direction& direction) {
  if (const auto known = find_name(kModelNames, module, direction); known) return std::string(*known);
  if (!module.starts_with(direction.from_block)) return std::nullopt;
  const std::string_view rest = module.substr(direction.from_block.size());
  const size_t dot = rest.find('.');
  if (dot == std::string_view::npos || dot == 0) return std::nullopt;
  const std::string_view number = rest.substr(0, dot);
  if (number.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  const auto known = find_name(kBlockNames, rest.substr(dot + 1), direction);
  return known ? std::optional(fmt::format("{}{}.{}", direction.to_block, number, *known)) : std::nullopt;
}

std::optional<std::string> translate(std::string_view name, const Direction& direction) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view suffix = name.substr(dot);
  if (suffix != ".weight" && suffix != ".bias") return std::nullopt;
  const auto module = translate_module(name.substr(0, dot), direction);
  return module ? std::optional(*module + std::string(suffix)) : std::nullopt;
}

}  // namespace

const GgufTensorType* find_gguf_type(uint32_t id) {
  const auto* type = std::ranges::find(kTensorTypes, id, &GgufTensorType::id);
  return type == std::end(kTensorTypes) ? nullptr : type;
}

const GgufTensorType& gguf_type(DType dtype) {
  const auto* type = std::ranges::find(kTensorTypes, std::optional(dtype), &GgufTensorType::dtype);
  if (type == std::end(kTensorTypes)) {
    throw Error(ExitCode::kInternal, fmt::format("{} is not written to GGUF files", dtype_name(dtype)));
  }
  return *type;
}

const GgufArchitecture* find_gguf_architecture(std::string_view name) {
  const auto* known = std::ranges::find(kArchitectures, name, &GgufArchitecture::name);
  return known == kArchitectures.end() ? nullptr : known;
}

std::optional<std::string> hf_tensor_name(std::string_view gguf) {
  return translate(gguf, kToHf);
}

std::optional<std::string> gguf_tensor_name(std::string_view hf) {
  return translate(hf, kToGguf);
}

bool is_query(std::string_view hf_name) {
  return hf_name.find(".q_proj.") != std::string_view::npos;
}

bool is_key(std::string_view hf_name) {
  return hf_name.find(".k_proj.") != std::string_view::npos;
}

int64_t interleaved_row(int64_t hf_row, int64_t rows_a_head) {
  const int64_t within = hf_row % rows_a_head;
  const int64_t half = within / (rows_a_head / 2);
  const int64_t i = within % (rows_a_head / 2);
  return hf_row - within + 2 * i + half;
}

int64_t separated_row(int64_t interleaved, int64_t rows_a_head) {
  const int64_t within = interleaved % rows_a_head;
  return interleaved - within + within % 2 * (rows_a_head / 2) + within / 2;
}

}  // namespace fettle::hub
