// SPDX-License-Identifier: Apache-2.0
/// grouped_product on AVX-512 BF16. Not FETTLE_MULTIVERSION: GCC's levels of x86-64 do not know these instructions.
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "ops/cpu/grouped.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>

// A lambda would not inherit it.
#define FETTLE_DOT __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace fettle::ops::cpu {
namespace {

constexpr int64_t kRows = kGroupedRows;

/// Every value of a container twice or more, in the order of its bits. A permutation looks at five bits of its index:
/// of narrower containers the bits above are a neighbour's, and the table repeats.
template <int kBits>
constexpr std::array<uint16_t, 32> value_table() {
  std::array<uint16_t, 32> table{};
  for (int i = 0; i < 32; ++i) {
    const int code = i % (1 << kBits);
    const int value = code < (1 << (kBits - 1)) ? code : code - (1 << kBits);
    table[static_cast<size_t>(i)] =
        static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(value)) >> 16);  // exact
  }
  return table;
}

/// A line, and its pairs of inputs as bfloat16: [16 rows][2].
template <int kBits>
struct Line {
  __m512i table;
  __m512i words;

  [[gnu::always_inline]] FETTLE_DOT Line() : words() {
    static constexpr std::array<uint16_t, 32> kTable = value_table<kBits>();
    table = _mm512_loadu_si512(kTable.data());
  }
  [[gnu::always_inline]] FETTLE_DOT void read(const uint8_t* line) { words = _mm512_loadu_si512(line); }
  [[gnu::always_inline]] FETTLE_DOT __m512bh pair(int64_t j) const {
    return reinterpret_cast<__m512bh>(
        _mm512_permutexvar_epi16(_mm512_srli_epi32(words, static_cast<unsigned>(kBits * j)), table));
  }
};
template <>
struct Line<8> {
  const uint8_t* bytes = nullptr;

  [[gnu::always_inline]] FETTLE_DOT void read(const uint8_t* line) { bytes = line; }
  [[gnu::always_inline]] FETTLE_DOT __m512bh pair(int64_t j) const {
    return _mm512_cvtne2ps_pbh(floats(bytes + 2 * kRows * j + kRows), floats(bytes + 2 * kRows * j));
  }
  [[gnu::always_inline]] FETTLE_DOT static __m512 floats(const uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
};

/// Sums of a token that do not wait for each other: a dot product takes several cycles.
constexpr int64_t chains(int64_t tokens) {
  return tokens <= 2 ? 4 : tokens <= 5 ? 2 : 1;
}

template <int kBits, int64_t kTokens>
FETTLE_DOT void product(const GroupedMatrix& matrix, int64_t block, const GroupedTile<BFloat16>& tile, float* totals) {
  constexpr int64_t kPairs = 16 / kBits;
  constexpr int64_t kChains = chains(kTokens) < kPairs ? chains(kTokens) : kPairs;
  const uint8_t* codes = matrix.codes + block * matrix.block_bytes();
  const BFloat16* x = tile.x;
  const int64_t lines = matrix.lines();
  Line<kBits> line;
  for (int64_t t = 0; t < kTokens; ++t) _mm512_storeu_ps(totals + t * kRows, _mm512_setzero_ps());
  for (int64_t g = 0; g < matrix.groups; ++g) {
    __m512 sums[kTokens][kChains];
#pragma GCC unroll 12
    for (int64_t t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int64_t k = 0; k < kChains; ++k) sums[t][k] = _mm512_setzero_ps();
    }
    for (int64_t l = 0; l < lines; ++l, codes += kGroupedLineBytes) {
      line.read(codes);
      _mm_prefetch(codes + kGroupedPrefetchBytes, _MM_HINT_T0);
#pragma GCC unroll 8
      for (int64_t j = 0; j < kPairs; ++j, x += 2 * kTokens) {
        const __m512bh values = line.pair(j);
#pragma GCC unroll 12
        for (int64_t t = 0; t < kTokens; ++t) {
          int32_t pair;
          std::memcpy(&pair, x + 2 * t, sizeof(pair));
          sums[t][j % kChains] =
              _mm512_dpbf16_ps(sums[t][j % kChains], values, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)));
        }
      }
    }
    const int64_t first = (block * matrix.groups + g) * kRows;
    const __m512 scale = _mm512_loadu_ps(matrix.scales + first);
    __m512 zero = _mm512_setzero_ps();
    if (matrix.zeros != nullptr) {
      zero = _mm512_cvtepi32_ps(
          _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(matrix.zeros + first))));
    }
#pragma GCC unroll 12
    for (int64_t t = 0; t < kTokens; ++t) {
      __m512 sum = sums[t][0];
#pragma GCC unroll 4
      for (int64_t k = 1; k < kChains; ++k) sum = _mm512_add_ps(sum, sums[t][k]);
      if (matrix.zeros != nullptr) sum = _mm512_fnmadd_ps(zero, _mm512_set1_ps(tile.sums[g * kTokens + t]), sum);
      float* total = totals + t * kRows;
      _mm512_storeu_ps(total, _mm512_fmadd_ps(scale, sum, _mm512_loadu_ps(total)));
    }
  }
}

using Product = void (*)(const GroupedMatrix&, int64_t, const GroupedTile<BFloat16>&, float*);

/// By the number of tokens, less 1.
template <int kBits, size_t... kTokens>
constexpr std::array<Product, sizeof...(kTokens)> products(std::index_sequence<kTokens...> /*of tokens*/) {
  return {&product<kBits, static_cast<int64_t>(kTokens) + 1>...};
}

}  // namespace

bool has_grouped_dot() {
  static const bool found = __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
                            __builtin_cpu_supports("avx512bf16") != 0;
  return found;
}

// Not every compiler's __builtin_cpu_supports knows it.
bool has_amx() {
  static const bool found = [] {
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 22 & 1) != 0;  // AMX-BF16
  }();
  return found;
}

void grouped_product(const GroupedMatrix& matrix, int64_t block, const GroupedTile<BFloat16>& tile, float* totals) {
  constexpr auto kTokens = std::make_index_sequence<kGroupedDotTokens>();
  static constexpr auto kProducts2 = products<2>(kTokens);
  static constexpr auto kProducts4 = products<4>(kTokens);
  static constexpr auto kProducts8 = products<8>(kTokens);
  const auto& of = matrix.container == 2 ? kProducts2 : matrix.container == 4 ? kProducts4 : kProducts8;
  of[static_cast<size_t>(tile.tokens) - 1](matrix, block, tile, totals);
}

}  // namespace fettle::ops::cpu

#else
#include <c10/util/Exception.h>

namespace fettle::ops::cpu {

bool has_grouped_dot() {
  return false;
}
bool has_amx() {
  return false;
}
void grouped_product(const GroupedMatrix& /*matrix*/, int64_t /*block*/, const GroupedTile<BFloat16>& /*tile*/,
                     float* /*totals*/) {
  TORCH_INTERNAL_ASSERT(false, "grouped_product: only after has_grouped_dot");
}

}  // namespace fettle::ops::cpu

#endif
