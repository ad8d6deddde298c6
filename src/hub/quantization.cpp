// SPDX-License-Identifier: Apache-2.0
#include "hub/quantization.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/error.h"

namespace fettle::hub {
namespace {

using nlohmann::json;

/// Typed access to quantization_config.
class BlockReader {
 public:
  explicit BlockReader(const json& values) : values_(values) {
    if (!values.is_object()) fail("", "is not an object");
  }

  [[noreturn]] static void fail(std::string_view key, const std::string& what) {
    throw Error(
        ExitCode::kConfig, fmt::format("config.json: quantization_config{}{} {}", key.empty() ? "" : ".", key, what),
        "models of compressed-tensors (pack-quantized), gptq and awq are known; or use the one it was made from");
  }

  [[nodiscard]] BlockReader object(const char* key) const {
    if (!values_.contains(key)) fail(key, "is missing");
    return BlockReader(values_.at(key));
  }
  [[nodiscard]] std::string text(const char* key, const char* missing = "") const {
    return has(key) && values_.at(key).is_string() ? values_.at(key).get<std::string>() : missing;
  }
  [[nodiscard]] bool flag(const char* key, bool missing) const {
    if (!has(key)) return missing;
    if (!values_.at(key).is_boolean()) fail(key, "is not true or false");
    return values_.at(key).get<bool>();
  }
  [[nodiscard]] std::optional<int64_t> integer(const char* key) const {
    if (!has(key)) return std::nullopt;
    if (!values_.at(key).is_number_integer()) fail(key, "is not a whole number");
    return values_.at(key).get<int64_t>();
  }
  [[nodiscard]] bool has(const char* key) const { return values_.contains(key) && !values_.at(key).is_null(); }
  [[nodiscard]] const json& values() const { return values_; }

  void require(const char* key, const char* expected) const {
    if (const std::string found = text(key, expected); found != expected) {
      fail(key, fmt::format("is {}; this version knows {}", found, expected));
    }
  }

  [[nodiscard]] int bits(const char* key, std::initializer_list<int> known) const {
    const int64_t bits = integer(key).value_or(0);
    if (std::ranges::find(known, bits) == known.end()) fail(key, fmt::format("is {}, which this method has not", bits));
    return static_cast<int>(bits);
  }
  [[nodiscard]] int64_t group(const char* key) const {
    const int64_t group = integer(key).value_or(-1);
    if (group != -1 && (group < 1 || group > 1 << 24)) fail(key, fmt::format("is {}", group));
    return group;
  }

 private:
  const json& values_;
};

Quantization read_compressed_tensors(const BlockReader& config) {
  config.require("format", "pack-quantized");
  config.require("quantization_status", "compressed");
  const BlockReader groups = config.object("config_groups");
  if (groups.values().size() != 1) BlockReader::fail("config_groups", "has not one group of layers");
  const BlockReader group(groups.values().front());
  for (const char* activations : {"input_activations", "output_activations"}) {
    if (group.has(activations)) BlockReader::fail(activations, "is set: activations in few bits are not supported");
  }
  const BlockReader weights = group.object("weights");
  weights.require("type", "int");
  const std::string strategy = weights.text("strategy", weights.has("group_size") ? "group" : "channel");
  if (strategy != "group" && strategy != "channel") BlockReader::fail("strategy", "is " + strategy);
  return {.layout = QuantizedLayout::kCompressedTensors,
          .bits = weights.bits("num_bits", {1, 2, 3, 4, 5, 6, 7, 8}),
          .group = strategy == "channel" ? -1 : weights.group("group_size"),
          .symmetric = weights.flag("symmetric", true)};
}

Quantization read_gptq(const BlockReader& config) {
  const std::string version = config.text("checkpoint_format", "gptq");
  if (version != "gptq" && version != "gptq_v2") BlockReader::fail("checkpoint_format", "is " + version);
  return {.layout = version == "gptq" ? QuantizedLayout::kGptq : QuantizedLayout::kGptqV2,
          .bits = config.bits("bits", {2, 3, 4, 8}),
          .group = config.group("group_size"),
          .symmetric = config.flag("sym", true),
          .act_order = config.flag("desc_act", false)};
}

Quantization read_awq(const BlockReader& config) {
  if (config.text("version") != "GEMM") config.require("version", "gemm");  // AutoAWQ wrote both
  return {.layout = QuantizedLayout::kAwq,
          .bits = config.bits("bits", {4}),
          .group = config.group("group_size"),
          .symmetric = !config.flag("zero_point", true)};
}

json compressed_tensors_config(const Quantization& quantization) {
  const bool whole_row = quantization.group == -1;
  json weights = {{"num_bits", quantization.bits},
                  {"type", "int"},
                  {"symmetric", quantization.symmetric},
                  {"strategy", whole_row ? "channel" : "group"},
                  {"group_size", whole_row ? json() : json(quantization.group)},
                  {"dynamic", false},
                  {"observer", "minmax"}};
  json config = {{"quant_method", "compressed-tensors"},
                 {"format", "pack-quantized"},
                 {"quantization_status", "compressed"},
                 {"ignore", {"lm_head"}},
                 {"config_groups",
                  {{"group_0",
                    {{"targets", {"Linear"}},
                     {"weights", weights},
                     {"input_activations", nullptr},
                     {"output_activations", nullptr},
                     {"format", "pack-quantized"}}}}}};
  // compressed-tensors 0.18 to 0.20 cannot load packed zero points in any other way.
  if (!quantization.symmetric) config["dequantize"] = true;
  return config;
}

}  // namespace

DType Quantization::scale_type(DType model) const {
  return layout == QuantizedLayout::kCompressedTensors ? model : DType::kF16;
}

std::optional<Quantization> read_quantization(const json& config) {
  const auto found = config.find("quantization_config");
  if (found == config.end() || found->is_null()) return std::nullopt;
  const BlockReader reader(*found);
  const std::string method = reader.text("quant_method");
  if (method == "compressed-tensors") return read_compressed_tensors(reader);
  if (method == "gptq") return read_gptq(reader);
  if (method == "awq") return read_awq(reader);
  BlockReader::fail("quant_method", method.empty() ? "is missing" : "is " + method);
}

json quantization_config(const Quantization& quantization) {
  switch (quantization.layout) {
    case QuantizedLayout::kCompressedTensors:
      return compressed_tensors_config(quantization);
    case QuantizedLayout::kAwq:
      return {{"quant_method", "awq"},
              {"version", "gemm"},
              {"bits", quantization.bits},
              {"group_size", quantization.group},
              {"zero_point", !quantization.symmetric},
              {"modules_to_not_convert", nullptr}};
    case QuantizedLayout::kGptq:
    case QuantizedLayout::kGptqV2:
      break;
  }
  json config = {{"quant_method", "gptq"},
                 {"checkpoint_format", quantization.layout == QuantizedLayout::kGptq ? "gptq" : "gptq_v2"},
                 {"bits", quantization.bits},
                 {"group_size", quantization.group},
                 {"sym", quantization.symmetric},
                 {"desc_act", quantization.act_order},
                 {"static_groups", false},
                 {"true_sequential", true},
                 {"lm_head", false}};
  // The kernel that gptqmodel 7.7 takes for these on a CPU knows no zero points.
  if (quantization.bits == 4 && quantization.group == -1 && !quantization.symmetric) config["backend"] = "gptq_torch";
  return config;
}

}  // namespace fettle::hub
