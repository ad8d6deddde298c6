// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/grouped.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "ops/cpu/simd.h"

namespace fettle::ops::cpu {
namespace {

constexpr int64_t kRows = kGroupedRows;

// Half a block: whole registers of AVX2, pairs of smaller ones.
using Floats = float __attribute__((vector_size(32)));
using Words = int32_t __attribute__((vector_size(32)));
using Shorts = int16_t __attribute__((vector_size(16)));
using Bytes = int8_t __attribute__((vector_size(8)));

template <typename Vector, typename T>
[[gnu::always_inline]] inline Vector load_vector(const T* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}
[[gnu::always_inline]] inline void store_vector(float* to, Floats vector) {
  std::memcpy(to, &vector, sizeof(vector));
}
[[gnu::always_inline]] inline Floats to_floats(Words words) {
  return __builtin_convertvector(words, Floats);
}

/// Pairs of inputs in a line.
template <int kBits>
constexpr int64_t kPairs = 16 / kBits;

/// Half a line's words, as the pairs are taken from.
template <int kBits>
struct HalfLine {
  Words words;

  [[gnu::always_inline]] HalfLine(const uint8_t* line, int64_t half) : words(load_vector<Words>(line + 32 * half)) {}
  /// The even or the odd input of pair `j` for eight rows.
  template <int kOdd>
  [[gnu::always_inline]] Floats get(int64_t j) const {
    return to_floats((words << ((kOdd == 0 ? 32 : 16) - kBits * static_cast<int>(j + 1))) >> (32 - kBits));
  }
};
template <>
struct HalfLine<8> {
  const uint8_t* bytes;

  [[gnu::always_inline]] HalfLine(const uint8_t* line, int64_t half) : bytes(line + kRows * half) {}
  template <int kOdd>
  [[gnu::always_inline]] Floats get(int64_t j) const {
    const Words pair = __builtin_convertvector(load_vector<Shorts>(bytes + 2 * kRows * j), Words);
    return to_floats(kOdd == 0 ? (pair << 24) >> 24 : pair >> 8);
  }
};

/// Half a block's zeros of group `g`.
[[gnu::always_inline]] inline Floats zeros_of(const int8_t* zeros, int64_t row) {
  return to_floats(__builtin_convertvector(load_vector<Bytes>(zeros + row), Words));
}

/// Sums of a token that do not wait for each other, beside those of the other rows and tokens. 16 registers have to do.
constexpr int64_t chains(int64_t tokens) {
  return tokens == 1 ? 4 : tokens == 2 ? 2 : 1;
}

template <int kBits, int64_t kTokens>
[[gnu::always_inline]] inline void add_group(const uint8_t* codes, int64_t lines, const float* x,
                                             Floats (&sums)[kTokens][chains(kTokens)][2]) {
  for (int64_t line = 0; line < lines; ++line, codes += kGroupedLineBytes) {
    __builtin_prefetch(codes + kGroupedPrefetchBytes);
    const HalfLine<kBits> lower(codes, 0);
    const HalfLine<kBits> upper(codes, 1);
#pragma GCC unroll 8
    for (int64_t j = 0; j < kPairs<kBits>; ++j, x += 2 * kTokens) {
      const Floats even[] = {lower.template get<0>(j), upper.template get<0>(j)};
      const Floats odd[] = {lower.template get<1>(j), upper.template get<1>(j)};
#pragma GCC unroll 4
      for (int64_t t = 0; t < kTokens; ++t) {
        auto& evens = sums[t][2 * j % chains(kTokens)];
        auto& odds = sums[t][(2 * j + 1) % chains(kTokens)];
        evens[0] += even[0] * x[2 * t];
        evens[1] += even[1] * x[2 * t];
        odds[0] += odd[0] * x[2 * t + 1];
        odds[1] += odd[1] * x[2 * t + 1];
      }
    }
  }
}

template <int kBits, int64_t kTokens>
[[gnu::always_inline]] inline void product(const GroupedMatrix& matrix, int64_t block, const GroupedTile<float>& tile,
                                           float* totals) {
  const uint8_t* codes = matrix.codes + block * matrix.block_bytes();
  const int64_t group_bytes = matrix.lines() * kGroupedLineBytes;
  std::fill_n(totals, kTokens * kRows, 0.0f);
  for (int64_t g = 0; g < matrix.groups; ++g) {
    Floats sums[kTokens][chains(kTokens)][2] = {};
    add_group<kBits, kTokens>(codes + g * group_bytes, matrix.lines(), tile.x + g * matrix.padded_group() * kTokens,
                              sums);
    const int64_t first = (block * matrix.groups + g) * kRows;
    for (int64_t half = 0; half < 2; ++half) {
      const auto scale = load_vector<Floats>(matrix.scales + first + 8 * half);
#pragma GCC unroll 4
      for (int64_t t = 0; t < kTokens; ++t) {
        Floats sum = sums[t][0][half];
        for (int64_t k = 1; k < chains(kTokens); ++k) sum += sums[t][k][half];
        if (matrix.zeros != nullptr) sum -= zeros_of(matrix.zeros + first, 8 * half) * tile.sums[g * kTokens + t];
        float* total = totals + t * kRows + 8 * half;
        store_vector(total, load_vector<Floats>(total) + scale * sum);
      }
    }
  }
}

template <int kBits>
[[gnu::always_inline]] inline void product_of(const GroupedMatrix& matrix, int64_t block,
                                              const GroupedTile<float>& tile, float* totals) {
  static_assert(kGroupedFloatTokens == 4);
  switch (tile.tokens) {
    case 1:
      return product<kBits, 1>(matrix, block, tile, totals);
    case 2:
      return product<kBits, 2>(matrix, block, tile, totals);
    case 3:
      return product<kBits, 3>(matrix, block, tile, totals);
    default:
      return product<kBits, 4>(matrix, block, tile, totals);
  }
}

template <typename From, typename To>
[[gnu::always_inline]] inline void copy_pair(const From* even, const From* odd, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    to[0] = *even;
    to[1] = *odd;
  } else {
    to[0] = load(*even);
    to[1] = load(*odd);
  }
}

template <typename From, typename To>
[[gnu::always_inline]] inline void pack_input(const GroupedMatrix& matrix, const GroupedInput<From>& input,
                                              const GroupedTile<To>& tile, int64_t token) {
  const int64_t stride = 2 * tile.tokens;
  To* to = tile.x + 2 * token;
  const From nothing = 0;
  for (int64_t g = 0; g < matrix.groups; ++g) {
    const int64_t first = g * matrix.group;
    const int64_t whole = matrix.group / 2 * 2;
    float sum = 0;
    const auto at = [&](int64_t i) { return input.x + (input.order == nullptr ? first + i : input.order[first + i]); };
    for (int64_t i = 0; i < whole; i += 2, to += stride) copy_pair(at(i), at(i + 1), to);
    for (int64_t i = whole; i < matrix.padded_group(); i += 2, to += stride) {
      copy_pair(i < matrix.group ? at(i) : &nothing, &nothing, to);
    }
    if (tile.sums == nullptr) continue;
    for (int64_t i = 0; i < matrix.group; ++i) sum += load(*at(i));
    tile.sums[g * tile.tokens + token] = sum;
  }
}

// Pairs of inputs that are expanded before they are turned into rows.
constexpr int64_t kStaged = 32;

/// Lines of a group, as T: pairs of inputs [lines · kPairs][16 rows][2], `stride` elements from a pair to the next.
template <typename T>
struct Pairs {
  T* to;
  int64_t stride;
};
template <int kBits, typename T>
[[gnu::always_inline]] inline void expand_lines(const uint8_t* codes, int64_t lines, const float* scale,
                                                const float* zero, const Pairs<T>& pairs) {
  for (int64_t line = 0; line < lines; ++line, codes += kGroupedLineBytes) {
    for (int64_t half = 0; half < 2; ++half) {
      const HalfLine<kBits> words(codes, half);
      const auto scales = load_vector<Floats>(scale + 8 * half);
      const auto zeros = load_vector<Floats>(zero + 8 * half);
#pragma GCC unroll 8
      for (int64_t j = 0; j < kPairs<kBits>; ++j) {
        const Floats even = (words.template get<0>(j) - zeros) * scales;
        const Floats odd = (words.template get<1>(j) - zeros) * scales;
        T* to = pairs.to + (line * kPairs<kBits> + j) * pairs.stride + 16 * half;
        for (int64_t row = 0; row < 8; ++row) {
          store(&to[2 * row], even[row]);
          store(&to[2 * row + 1], odd[row]);
        }
      }
    }
  }
}

template <int kBits, typename T>
[[gnu::always_inline]] inline void expand(const GroupedMatrix& matrix, int64_t block, T* to, int64_t rows) {
  constexpr int64_t kLines = kStaged / kPairs<kBits>;
  alignas(64) std::array<T, kStaged * kRows * 2> stage;
  std::array<float, kRows> zero{};
  const int64_t columns = matrix.groups * matrix.group;
  for (int64_t g = 0; g < matrix.groups; ++g) {
    const int64_t first = (block * matrix.groups + g) * kRows;
    if (matrix.zeros != nullptr) std::copy_n(matrix.zeros + first, kRows, zero.begin());
    const uint8_t* codes = matrix.codes + (block * matrix.groups + g) * matrix.lines() * kGroupedLineBytes;
    for (int64_t line = 0; line < matrix.lines(); line += kLines) {
      const int64_t lines = std::min(kLines, matrix.lines() - line);
      expand_lines<kBits>(codes + line * kGroupedLineBytes, lines, matrix.scales + first, zero.data(),
                          Pairs<T>{stage.data(), 2 * kRows});
      const int64_t begin = line * matrix.line_inputs();
      const int64_t count = std::min(lines * matrix.line_inputs(), matrix.group - begin);
      for (int64_t row = 0; row < rows; ++row) {
        T* out = to + row * columns + g * matrix.group + begin;
        for (int64_t i = 0; i + 1 < count; i += 2)
          std::memcpy(out + i, &stage[(i * kRows / 2 + row) * 2], 2 * sizeof(T));
        if (count % 2 != 0) out[count - 1] = stage[((count - 1) * kRows / 2 + row) * 2];
      }
    }
  }
}

template <int kBits>
[[gnu::always_inline]] inline void expand_pairs(const GroupedMatrix& matrix, int64_t block, BFloat16* to,
                                                int64_t stride) {
  std::array<float, kRows> zero{};
  for (int64_t g = 0; g < matrix.groups; ++g) {
    const int64_t at = block * matrix.groups + g;
    if (matrix.zeros != nullptr) std::copy_n(matrix.zeros + at * kRows, kRows, zero.begin());
    expand_lines<kBits>(matrix.codes + at * matrix.lines() * kGroupedLineBytes, matrix.lines(),
                        matrix.scales + at * kRows, zero.data(),
                        Pairs<BFloat16>{to + g * matrix.group / 2 * stride, stride});
  }
}

template <typename T>
[[gnu::always_inline]] inline void expand_any(const GroupedMatrix& matrix, int64_t block, T* to, int64_t rows) {
  switch (matrix.container) {
    case 2:
      return expand<2>(matrix, block, to, rows);
    case 4:
      return expand<4>(matrix, block, to, rows);
    default:
      return expand<8>(matrix, block, to, rows);
  }
}

}  // namespace

FETTLE_MULTIVERSION void grouped_pack_input(const GroupedMatrix& matrix, const GroupedInput<float>& input,
                                            const GroupedTile<float>& tile, int64_t token) {
  pack_input(matrix, input, tile, token);
}
FETTLE_MULTIVERSION void grouped_pack_input(const GroupedMatrix& matrix, const GroupedInput<BFloat16>& input,
                                            const GroupedTile<float>& tile, int64_t token) {
  pack_input(matrix, input, tile, token);
}
FETTLE_MULTIVERSION void grouped_pack_input(const GroupedMatrix& matrix, const GroupedInput<BFloat16>& input,
                                            const GroupedTile<BFloat16>& tile, int64_t token) {
  pack_input(matrix, input, tile, token);
}

FETTLE_MULTIVERSION void grouped_product(const GroupedMatrix& matrix, int64_t block, const GroupedTile<float>& tile,
                                         float* totals) {
  switch (matrix.container) {
    case 2:
      return product_of<2>(matrix, block, tile, totals);
    case 4:
      return product_of<4>(matrix, block, tile, totals);
    default:
      return product_of<8>(matrix, block, tile, totals);
  }
}

FETTLE_MULTIVERSION void grouped_expand(const GroupedMatrix& matrix, int64_t block, float* to, int64_t rows) {
  expand_any(matrix, block, to, rows);
}
FETTLE_MULTIVERSION void grouped_expand(const GroupedMatrix& matrix, int64_t block, BFloat16* to, int64_t rows) {
  expand_any(matrix, block, to, rows);
}

FETTLE_MULTIVERSION void grouped_expand_pairs(const GroupedMatrix& matrix, int64_t block, BFloat16* to,
                                              int64_t stride) {
  switch (matrix.container) {
    case 2:
      return expand_pairs<2>(matrix, block, to, stride);
    case 4:
      return expand_pairs<4>(matrix, block, to, stride);
    default:
      return expand_pairs<8>(matrix, block, to, stride);
  }
}

FETTLE_MULTIVERSION void grouped_round(const float* sums, const float* added, BFloat16* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(to + i, sums[i] + (added == nullptr ? 0.0f : added[i]));
}

}  // namespace fettle::ops::cpu
