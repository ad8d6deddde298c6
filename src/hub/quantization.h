// SPDX-License-Identifier: Apache-2.0
/// Models whose matrices are whole numbers of few bits with scales, in the layouts that transformers loads:
/// compressed-tensors' pack-quantized, GPTQ (both versions) and AWQ (gemm).
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hub/tensor.h"
#include "hub/tensor_source.h"

namespace fettle::hub {

enum class QuantizedLayout { kCompressedTensors, kGptq, kGptqV2, kAwq };

/// What quantization_config in a model's config.json says of its linear layers.
struct Quantization {
  QuantizedLayout layout = QuantizedLayout::kCompressedTensors;
  int bits = 4;            ///< 1 … 8; GPTQ 2, 3, 4, 8; AWQ 4
  int64_t group = -1;      ///< inputs that share a scale; -1: all of a row
  bool symmetric = true;   ///< every zero is 2^(bits-1)
  bool act_order = false;  ///< GPTQ: the group of an input is stated for each (g_idx)

  /// Inputs that share a scale in a row of so many.
  [[nodiscard]] int64_t group_of(int64_t columns) const { return group == -1 ? columns : group; }
  /// The type of scales in a model whose other tensors are of `model`.
  [[nodiscard]] DType scale_type(DType model) const;
};

/// Reads config.json's quantization_config; nothing if it has none. Throws Error{kConfig} naming the key for a method
/// or a setting that is not known here.
std::optional<Quantization> read_quantization(const nlohmann::json& config);

/// What config.json is to have as quantization_config.
nlohmann::json quantization_config(const Quantization& quantization);

/// A matrix [O, C] of whole numbers: value[o][c] = (codes[o][c] - zeros[o][g]) · scales[o][g], g the group of input c.
struct QuantizedMatrix {
  int bits = 0;
  int64_t rows = 0;                    ///< O
  int64_t columns = 0;                 ///< C
  int64_t group = 0;                   ///< inputs of each of the G = C / group groups
  std::vector<uint8_t> codes = {};     ///< [O, C]
  std::vector<float> scales = {};      ///< [O, G]
  std::vector<uint8_t> zeros = {};     ///< [O, G]; empty: all are 2^(bits-1)
  std::vector<int32_t> group_of = {};  ///< [C]; empty: c / group
};

/// Throws Error{kConfig} if the layout cannot hold a layer of so many rows and columns, naming it.
void require_representable(const Quantization& quantization, const std::string& module, int64_t rows, int64_t columns);

/// A tensor with its bytes.
struct StoredTensor {
  TensorView view;
  std::vector<std::byte> bytes;  ///< what view.bytes shows

  StoredTensor(std::string name, DType dtype, std::vector<int64_t> shape, std::vector<std::byte> content);
  StoredTensor(StoredTensor&&) noexcept = default;
  StoredTensor& operator=(StoredTensor&&) noexcept = default;
};

/// The tensors of a linear layer named `module` in the layout. Scales are rounded to `scale_type`: to lose nothing,
/// they are of it already. Throws Error{kConfig} for what the layout cannot hold, naming the module.
std::vector<StoredTensor> encode(const Quantization& quantization, const std::string& module,
                                 const QuantizedMatrix& matrix, DType scale_type);

/// Names and shapes of the tensors that hold a layer of [rows, columns], without those that may be absent. Empty if it
/// is not quantized in this file: it has a plain weight.
std::vector<TensorView> expected_tensors(const Quantization& quantization, const TensorSource& source,
                                         const std::string& module, int64_t rows, int64_t columns);

/// Reads such a layer. Throws Error{kData} naming the tensor that is missing, of another type or shape, or that holds
/// what it cannot.
QuantizedMatrix decode(const Quantization& quantization, const TensorSource& source, const std::string& module,
                       int64_t rows, int64_t columns);

}  // namespace fettle::hub
