// SPDX-License-Identifier: Apache-2.0
/// Matrices rounded to whole numbers of few bits with a scale, and perhaps a zero point, for each group of inputs.
///
/// O rows (outputs), C columns (inputs), g inputs a group, G = C / g groups.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "hub/quantization.h"

namespace fettle::quantize {

/// The smallest scale that a type stores: 2⁻²⁴ in float16, else the smallest normal number.
constexpr float smallest_scale(at::ScalarType type) {
  return type == at::kHalf ? 0x1p-24f : 0x1p-126f;
}

/// What a matrix is rounded to.
struct Scheme {
  int bits = 4;                            ///< 1 … 8
  int64_t group = -1;                      ///< inputs that share a scale; -1: all of a row
  bool symmetric = true;                   ///< zero is the code 2^(bits-1)
  int lowest_zero = 0;                     ///< of zero points: some layouts cannot store 0
  at::ScalarType scale_type = at::kFloat;  ///< scales are numbers of this type

  [[nodiscard]] int largest_code() const { return (1 << bits) - 1; }
  [[nodiscard]] int64_t group_of(int64_t columns) const { return group == -1 ? columns : group; }
};

/// Scale and zero of groups: value = (code - zero) · scale.
struct Ranges {
  at::Tensor scales;  ///< float32 [O, G]
  at::Tensor zeros;   ///< float32 [O, G], whole numbers from 0 to the largest code
};

/// The ranges from the smallest to the largest weight of each group, zero included, as GPTQ's quantizer has them: the
/// symmetric scale is 2·max|w| / (2^bits - 1). `weight` float32 [O, C].
Ranges find_ranges(const at::Tensor& weight, const Scheme& scheme);

/// The same with the limits [O, G] given; `lowest` ≤ 0 ≤ `highest`.
Ranges ranges_of(const at::Tensor& lowest, const at::Tensor& highest, const Scheme& scheme);

/// A rounded matrix.
struct RoundedWeight {
  at::Tensor codes;     ///< uint8 [O, C]
  Ranges ranges;        ///< [O, G]
  at::Tensor group_of;  ///< int32 [C]: the group of each input; undefined: neighbours

  /// float32 [O, C].
  [[nodiscard]] at::Tensor values() const;
};

/// Each weight as the nearest number of its group's range; halves to even.
RoundedWeight round_to(const at::Tensor& weight, const Ranges& ranges, const Scheme& scheme);

/// Round to nearest: round_to(find_ranges).
RoundedWeight rtn(const at::Tensor& weight, const Scheme& scheme);

/// As the layouts take it.
hub::QuantizedMatrix to_matrix(const RoundedWeight& rounded, const Scheme& scheme);

}  // namespace fettle::quantize
