// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

namespace fettle::ops::cpu {
namespace {

template <typename T>
[[gnu::always_inline]] inline void copy(const T* from, T* to, const PaddedRows& size) {
  for (int64_t row = 0; row < size.padded_rows; ++row, to += size.padded_columns) {
    const int64_t columns = row < size.rows ? size.columns : 0;
    std::copy_n(from + (columns > 0 ? row * size.stride : 0), columns, to);
    std::fill(to + columns, to + size.padded_columns, T(0));
  }
}

[[gnu::always_inline]] inline void pack(const float* from, float* to, const PaddedRows& size) {
  copy(from, to, size);
}
[[gnu::always_inline]] inline void pack(const BFloat16* from, BFloat16* to, const PaddedRows& size) {
  std::fill_n(to, size.padded_rows * size.padded_columns, BFloat16(0));
  for (int64_t row = 0; row + 1 < size.rows; row += 2) {
    interleave(from + row * size.stride, from + (row + 1) * size.stride, to + row * size.padded_columns, size.columns);
  }
  if (size.rows % 2 == 1) {
    const BFloat16* last = from + (size.rows - 1) * size.stride;
    BFloat16* pairs = to + (size.rows - 1) * size.padded_columns;
    for (int64_t i = 0; i < size.columns; ++i) pairs[2 * i] = last[i];
  }
}

// Elements of `Unit` bytes' width: pairs of bfloat16 move together.
template <typename Unit, typename T>
[[gnu::always_inline]] inline void transpose_units(const T* from, T* to, const PaddedRows& size) {
  constexpr int64_t kWidth = sizeof(Unit) / sizeof(T);
  for (int64_t unit = 0; unit < size.padded_columns / kWidth; ++unit) {
    T* line = to + unit * size.padded_rows * kWidth;
    const int64_t rows = unit * kWidth < size.columns ? size.rows : 0;
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(line + row * kWidth, from + row * size.stride + unit * kWidth, sizeof(Unit));
    }
    std::fill(line + rows * kWidth, line + size.padded_rows * kWidth, T(0));
  }
}

template <typename T>
[[gnu::always_inline]] inline void transpose_back(const float* from, T* to, const PaddedRows& size) {
  for (int64_t row = 0; row < size.rows; ++row) {
    for (int64_t i = 0; i < size.columns; ++i) store(&to[row * size.stride + i], from[i * size.padded_rows + row]);
  }
}

}  // namespace

// Pair: what moves together when a right operand is transposed.
#define FETTLE_PACK_KERNELS(T, Pair)                                                      \
  FETTLE_MULTIVERSION void copy_rows(const T* from, T* to, PaddedRows size) {             \
    copy(from, to, size);                                                                 \
  }                                                                                       \
  FETTLE_MULTIVERSION void pack_right(const T* from, T* to, PaddedRows size) {            \
    pack(from, to, size);                                                                 \
  }                                                                                       \
  FETTLE_MULTIVERSION void pack_right_transposed(const T* from, T* to, PaddedRows size) { \
    transpose_units<Pair>(from, to, size);                                                \
  }                                                                                       \
  FETTLE_MULTIVERSION void transpose_rows(const T* from, T* to, PaddedRows size) {        \
    transpose_units<T>(from, to, size);                                                   \
  }                                                                                       \
  FETTLE_MULTIVERSION void store_transposed(const float* from, T* to, PaddedRows size) {  \
    transpose_back(from, to, size);                                                       \
  }
FETTLE_PACK_KERNELS(float, float)
FETTLE_PACK_KERNELS(BFloat16, uint32_t)

}  // namespace fettle::ops::cpu
