// SPDX-License-Identifier: Apache-2.0
/// A frozen weight in 8 or 4 bits an element, for QLoRA (Dettmers et al. 2023, arXiv 2305.14314).
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>

namespace fettle::ops {

/// Elements that share a scale, in row-major order.
inline constexpr int64_t kQuantizationBlock = 64;

/// What a code stands for. nf4 and fp4 are bitsandbytes' own, bit for bit.
enum class WeightFormat : int64_t {
  kInt8,  ///< code · scale, codes -127 … 127
  kInt4,  ///< (code - 8)/8 · scale; the scale has the sign that gives the largest element a code of its own
  kNf4,   ///< quantiles of a normal distribution
  kFp4,   ///< sign, two bits of exponent, one of mantissa
  kFp8,   ///< float8_e4m3fn up to kLargestFp8, times one scale for the whole matrix: Gaudi computes with it
};

/// A Gaudi 2 has no e4m3 beyond.
inline constexpr double kLargestFp8 = 240;

/// int8, int4, nf4, fp4, fp8.
std::string_view name(WeightFormat format);

/// The 16 values of a 4-bit format, between -1 and 1, by code.
const std::array<float, 16>& codebook(WeightFormat format);

struct QuantizedWeight {
  WeightFormat format;
  int64_t rows;     ///< O
  int64_t columns;  ///< C
  /// int8 or float8 [O·C]; or uint8 [⌈O·C/2⌉], an element with an even index in the upper half of a byte.
  at::Tensor codes;
  at::Tensor scales;  ///< float32 [⌈O·C/64⌉]; of kFp8 [1]

  [[nodiscard]] int64_t bytes() const { return static_cast<int64_t>(codes.nbytes() + scales.nbytes()); }
};

/// Each element of the matrix [O, C] (float32 or bfloat16, on the CPU) as the nearest value of its block. A block with
/// an element that is not finite becomes NaN.
QuantizedWeight quantize(const at::Tensor& weight, WeightFormat format);

/// [O, C] in `type`, a product in float32 rounded to nearest even.
at::Tensor dequantize(const QuantizedWeight& weight, at::ScalarType type);

namespace composite {
at::Tensor dequantize(const QuantizedWeight& weight, at::ScalarType type);
}

}  // namespace fettle::ops
