// SPDX-License-Identifier: Apache-2.0
/// A frozen weight of whole numbers of 1 to 8 bits, with a scale and a zero for each group of inputs: what the files of
/// GPTQ (Frantar et al. 2022, arXiv 2210.17323), AWQ (Lin et al. 2023, arXiv 2306.00978) and rounding to nearest come
/// down to. Few tokens are multiplied with the codes themselves.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fettle::ops {

/// A matrix [O, C] of G groups a row: value[o][c] = (code[o][c] - zero[o][g]) · scale[o][g], g the group of input c.
struct GroupedWeight {
  int bits;           ///< 1 … 8
  int64_t rows;       ///< O
  int64_t columns;    ///< C
  int64_t group;      ///< inputs that share a scale, in the order in which columns are kept: C / G
  at::Tensor codes;   ///< uint8, in blocks of 16 rows: ops/cpu/grouped.h
  at::Tensor scales;  ///< float32 [⌈O/16⌉, G, 16]
  at::Tensor zeros;   ///< int8, the same, less 2^(bits-1); undefined: all are 2^(bits-1)
  at::Tensor order;   ///< int64 [C]: the input that each kept column multiplies; undefined: as they are

  /// What is kept for the matrix, padding included.
  [[nodiscard]] int64_t bytes() const;
};

/// The same, an element a code.
struct PlainCodes {
  int bits;             ///< 1 … 8
  int64_t group;        ///< inputs that share a scale: C / G
  at::Tensor codes;     ///< uint8 [O, C], less than 2^bits
  at::Tensor scales;    ///< float32 [O, G]
  at::Tensor zeros;     ///< uint8 [O, G], at most 127 more than 2^(bits-1); undefined: all are 2^(bits-1)
  at::Tensor group_of;  ///< int32 [C], each group `group` times (GPTQ's act-order); undefined: c / group
};

/// On the CPU. Columns are kept sorted by group. TORCH_CHECKs all that PlainCodes promises: whoever reads a file
/// refuses earlier.
GroupedWeight pack(const PlainCodes& plain);
/// The inverse, to the bit, on the CPU; zeros and groups that are as if undefined come back undefined.
PlainCodes unpack(const GroupedWeight& weight);

/// [O, C] in `type`, columns in the inputs' own order: a product in float32 rounded once to nearest even.
at::Tensor dequantize(const GroupedWeight& weight, at::ScalarType type);

/// x [T, C] · weightᵀ + bias [O] (or undefined) → [T, O] in x's type. No gradients: lora_linear has them. Where
/// multiplies_codes says so, values are exact and sums float32, scaled once a group, and what comes out is rounded
/// once; else the matrix is expanded in x's type.
at::Tensor grouped_linear(const at::Tensor& x, const GroupedWeight& weight, const at::Tensor& bias);
/// Whether this many tokens are multiplied with the codes themselves.
bool multiplies_codes(const at::Tensor& x);

namespace composite {
at::Tensor dequantize(const GroupedWeight& weight, at::ScalarType type);
at::Tensor grouped_linear(const at::Tensor& x, const GroupedWeight& weight, const at::Tensor& bias);
}  // namespace composite

}  // namespace fettle::ops
