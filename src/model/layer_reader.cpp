// SPDX-License-Identifier: Apache-2.0
#include "model/layer_reader.h"

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/file.h"
#include "hub/quantization.h"
#include "model/weights.h"

namespace fettle::model {
namespace {

template <typename T>
at::Tensor tensor_of(const std::vector<T>& values, at::IntArrayRef shape) {
  if (values.empty()) return {};
  at::Tensor tensor = at::empty(shape, c10::CppTypeToScalarType<T>::value);
  std::ranges::copy(values, tensor.mutable_data_ptr<T>());
  return tensor;
}

ops::GroupedWeight grouped_weight(const hub::QuantizedMatrix& matrix) {
  const int64_t groups = matrix.columns / matrix.group;
  return ops::pack({.bits = matrix.bits,
                    .group = matrix.group,
                    .codes = tensor_of(matrix.codes, {matrix.rows, matrix.columns}),
                    .scales = tensor_of(matrix.scales, {matrix.rows, groups}),
                    .zeros = tensor_of(matrix.zeros, {matrix.rows, groups}),
                    .group_of = tensor_of(matrix.group_of, {matrix.columns})});
}

}  // namespace

LayerReader::LayerReader(std::shared_ptr<const hub::TensorSource> source, at::ScalarType type, at::Device device,
                         std::optional<ops::WeightFormat> quantization)
    : source_(std::move(source)), type_(type), quantization_(quantization), device_(device) {}

LayerReader LayerReader::elsewhere() const {
  LayerReader other = *this;
  other.is_here_ = false;
  return other;
}

Parameter LayerReader::parameter(const std::string& name) const {
  const hub::TensorView& view = *source_->find(name);
  return placed(
      is_here_ ? Parameter(name, read_tensor(source_, view, type_)) : Parameter::elsewhere(name, view.shape, type_),
      view);
}

Linear LayerReader::linear(const DecoderSpec& spec, const std::string& name, const Shape& shape) const {
  return {name, matrix(spec, name, shape), shape.bias ? std::optional(parameter(name + ".bias")) : std::nullopt,
          std::nullopt};
}

Layer LayerReader::layer(const DecoderSpec& spec, int64_t index) const {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  const auto head_norm = [&](const char* name) {
    return spec.qk_norm ? std::optional(parameter(prefix + name)) : std::nullopt;
  };
  const auto matrix = [&](const char* name, int64_t rows, int64_t columns, bool bias) {
    return linear(spec, prefix + name, {rows, columns, bias});
  };
  const int64_t hidden = spec.hidden_size;
  const int64_t heads = spec.heads * spec.head_dim;
  const int64_t kv_heads = spec.kv_heads * spec.head_dim;
  return {.input_norm = parameter(prefix + "input_layernorm.weight"),
          .query = matrix("self_attn.q_proj", heads, hidden, spec.qkv_bias),
          .key = matrix("self_attn.k_proj", kv_heads, hidden, spec.qkv_bias),
          .value = matrix("self_attn.v_proj", kv_heads, hidden, spec.qkv_bias),
          .query_norm = head_norm("self_attn.q_norm.weight"),
          .key_norm = head_norm("self_attn.k_norm.weight"),
          .output = matrix("self_attn.o_proj", hidden, heads, spec.output_bias),
          .post_attention_norm = parameter(prefix + "post_attention_layernorm.weight"),
          .gate = matrix("mlp.gate_proj", spec.intermediate_size, hidden, spec.mlp_bias),
          .up = matrix("mlp.up_proj", spec.intermediate_size, hidden, spec.mlp_bias),
          .down = matrix("mlp.down_proj", hidden, spec.intermediate_size, spec.mlp_bias)};
}

Parameter LayerReader::matrix(const DecoderSpec& spec, const std::string& module, const Shape& shape) const {
  const std::string name = module + ".weight";
  if (spec.quantization && source_->find(name) == nullptr) {
    const hub::QuantizedMatrix matrix = hub::decode(*spec.quantization, *source_, module, shape.rows, shape.columns);
    Parameter result = Parameter::grouped(name, grouped_weight(matrix), type_);
    if (!device_.is_cpu()) result.move_to(device_);
    return result;
  }
  if (!quantization_) return parameter(name);
  const hub::TensorView& view = *source_->find(name);
  Parameter result(name, read_tensor(source_, view, type_));
  result.quantize(*quantization_);
  release_pages(view.bytes);
  return placed(std::move(result), view);
}

Parameter LayerReader::placed(Parameter parameter, const hub::TensorView& view) const {
  if (!device_.is_cpu()) {
    parameter.move_to(device_);
    release_pages(view.bytes);
  }
  return parameter;
}

}  // namespace fettle::model
