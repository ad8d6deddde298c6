// SPDX-License-Identifier: Apache-2.0
/// CPU kernels of ops/grouped_weight.h, and how such a matrix lies in memory.
///
/// A value is its code less 2^(bits-1): two's complement, in a container of 2 (for 1 and 2 bits), 4 (3 and 4) or 8
/// bits. Rows come in blocks of 16, the last one padded, so that a vector of 16 lanes computes a block at once. A block
/// is one stream: its groups in order, each of whole lines of 64 bytes, padded with values of 0. A line holds 16, 8 or
/// 4 inputs of all 16 rows:
///   2 and 4 bits: a little-endian word of 32 bits a row; its lower half holds the even inputs, lowest first, and its
///     upper half the odd ones. Shifting it by j containers leaves inputs 2j and 2j+1 at the bottom of both halves.
///   8 bits: the first two inputs of every row, and then the next two: [2 pairs][16 rows][2].
/// Scales (float32) and zeros (int8, less 2^(bits-1)) are [blocks][groups][16 rows].
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace fettle::ops::cpu {

using c10::BFloat16;

inline constexpr int64_t kGroupedRows = 16;       ///< of a block
inline constexpr int64_t kGroupedLineBytes = 64;  ///< of a line
// How far ahead a block is asked for: with it, one core read 20 GB/s from memory instead of 14.
inline constexpr int64_t kGroupedPrefetchBytes = 2048;
inline constexpr int64_t kGroupedDotTokens = 12;   ///< the largest tile of grouped_product of bfloat16
inline constexpr int64_t kGroupedFloatTokens = 4;  ///< and of float

struct GroupedMatrix {
  int64_t container;  ///< bits: 2, 4 or 8
  int64_t groups;     ///< of a row
  int64_t group;      ///< inputs, without the padding
  const uint8_t* codes;
  const float* scales;
  const int8_t* zeros;  ///< null: all 0

  [[nodiscard]] constexpr int64_t line_inputs() const { return 32 / container; }
  [[nodiscard]] constexpr int64_t lines() const { return (group + line_inputs() - 1) / line_inputs(); }
  [[nodiscard]] constexpr int64_t padded_group() const { return lines() * line_inputs(); }
  [[nodiscard]] constexpr int64_t block_bytes() const { return groups * lines() * kGroupedLineBytes; }
};

/// Where a group's input `i` of the block's first row lies: byte and bit from the group's start on. Further rows follow
/// after grouped_row_bytes each.
struct GroupedPlace {
  int64_t byte;
  int64_t bit;
};
constexpr GroupedPlace grouped_place(int64_t container, int64_t i) {
  if (container == 8) return {i / 2 * 2 * kGroupedRows + i % 2, 0};
  const int64_t inputs = 32 / container;
  const int64_t bit = i % inputs / 2 * container;
  return {i / inputs * kGroupedLineBytes + i % 2 * 2 + bit / 8, bit % 8};
}
constexpr int64_t grouped_row_bytes(int64_t container) {
  return container == 8 ? 2 : 4;
}

/// One token's inputs, as the products read them.
template <typename T>
struct GroupedInput {
  const T* x;            ///< [C]
  const int64_t* order;  ///< of each kept column, the input that it multiplies; null: itself
};
/// A tile of `tokens` tokens: [groups · padded_group / 2][tokens][2], and, where zeros are, the float32 sums of each
/// group [groups][tokens].
template <typename T>
struct GroupedTile {
  T* x;
  float* sums;  ///< null: not wanted
  int64_t tokens;
};
/// Writes one token of a tile, its `token`th. From bfloat16 to float where the products are of float.
void grouped_pack_input(const GroupedMatrix& matrix, const GroupedInput<float>& input, const GroupedTile<float>& tile,
                        int64_t token);
void grouped_pack_input(const GroupedMatrix& matrix, const GroupedInput<BFloat16>& input,
                        const GroupedTile<float>& tile, int64_t token);
void grouped_pack_input(const GroupedMatrix& matrix, const GroupedInput<BFloat16>& input,
                        const GroupedTile<BFloat16>& tile, int64_t token);

/// totals [tokens][16] = tile · blockᵀ, of the matrix' `block`th. Products and sums are float32; a group's sum is
/// corrected by its zero and scaled once.
void grouped_product(const GroupedMatrix& matrix, int64_t block, const GroupedTile<float>& tile, float* totals);
/// The same on the processor's dot product of pairs of bfloat16. Only after has_grouped_dot.
void grouped_product(const GroupedMatrix& matrix, int64_t block, const GroupedTile<BFloat16>& tile, float* totals);
/// Whether the processor has it (AVX-512 BF16).
bool has_grouped_dot();
/// Whether it multiplies whole tiles of bfloat16 at once, as dense products do then.
bool has_amx();

/// The first `rows` rows of a block as T, `stride` elements apart, columns as they are kept: a float32 product rounded
/// to nearest even.
void grouped_expand(const GroupedMatrix& matrix, int64_t block, float* to, int64_t rows);
void grouped_expand(const GroupedMatrix& matrix, int64_t block, BFloat16* to, int64_t rows);
/// The same of all 16 rows as a right operand of cpu/brgemm.h: pairs of columns [C/2][16 rows][2], `stride` elements
/// from a pair to the next. Groups of whole lines.
void grouped_expand_pairs(const GroupedMatrix& matrix, int64_t block, BFloat16* to, int64_t stride);
/// to [count] = sums + added, rounded to nearest even; `added` may be null.
void grouped_round(const float* sums, const float* added, BFloat16* to, int64_t count);

}  // namespace fettle::ops::cpu
