// SPDX-License-Identifier: Apache-2.0
/// Layers from a checkpoint's tensors, whose names and shapes have been checked (check_names).
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>

#include "hub/tensor_source.h"
#include "model/layer.h"
#include "ops/quantized_weight.h"

namespace fettle::model {

class LayerReader {
 public:
  /// `type`: of all tensors, and what is computed in. `quantization`: what the layers' matrices are kept in.
  LayerReader(std::shared_ptr<const hub::TensorSource> source, at::ScalarType type, at::Device device,
              std::optional<ops::WeightFormat> quantization = {});

  /// For layers that another rank holds: no bytes are read.
  [[nodiscard]] LayerReader elsewhere() const;

  [[nodiscard]] Parameter parameter(const std::string& name) const;
  [[nodiscard]] Layer layer(const DecoderSpec& spec, int64_t index) const;

 private:
  /// A linear layer [rows, columns], as `quantization` says if the file has it in few bits.
  struct Shape {
    int64_t rows;
    int64_t columns;
    bool bias;
  };
  [[nodiscard]] Linear linear(const DecoderSpec& spec, const std::string& name, const Shape& shape) const;
  [[nodiscard]] Parameter matrix(const DecoderSpec& spec, const std::string& module, const Shape& shape) const;
  [[nodiscard]] Parameter placed(Parameter parameter, const hub::TensorView& view) const;

  std::shared_ptr<const hub::TensorSource> source_;
  at::ScalarType type_;
  std::optional<ops::WeightFormat> quantization_;
  at::Device device_;
  bool is_here_ = true;
};

}  // namespace fettle::model
