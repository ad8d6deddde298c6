// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/quantized.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "ops/cpu/simd.h"
#include "ops/quantized_weight.h"

namespace fettle::ops::cpu {
namespace {

constexpr int64_t kBlock = kQuantizationBlock;

/// Calls run(block, first element, elements) for each block.
template <typename Run>
[[gnu::always_inline]] inline void each_block(int64_t count, const Run& run) {
  for (int64_t block = 0; block * kBlock < count; ++block) {
    run(block, block * kBlock, std::min(kBlock, count - block * kBlock));
  }
}

/// The largest magnitude; NaN if an element is not finite, so that a broken weight stays one.
template <typename T>
[[gnu::always_inline]] inline float largest(const T* from, int64_t size) {
  float most = 0;
  float zero = 0;
#pragma omp simd reduction(max : most) reduction(+ : zero)
  for (int64_t i = 0; i < size; ++i) {
    const float magnitude = std::abs(load(from[i]));
    most = magnitude > most ? magnitude : most;
    zero += magnitude * 0.0f;
  }
  return most + zero;
}

/// As bitsandbytes multiplies by the reciprocal. A block of zeros has a reciprocal too.
[[gnu::always_inline]] inline float reciprocal(float scale) {
  constexpr float kLeast = 1e-38f;
  return std::abs(scale) < kLeast ? 1.0f / kLeast : 1.0f / scale;
}

/// The sorted codebook's midpoints, and the code of each rank.
struct Ranks {
  std::array<float, 15> midpoints;
  std::array<uint8_t, 16> codes;

  explicit Ranks(const std::array<float, 16>& codebook) : midpoints(), codes() {
    std::iota(codes.begin(), codes.end(), uint8_t{0});
    std::ranges::stable_sort(codes, {}, [&](uint8_t code) { return codebook[code]; });
    for (size_t i = 0; i < 15; ++i) midpoints[i] = (codebook[codes[i]] + codebook[codes[i + 1]]) / 2;
  }
};

template <typename T>
[[gnu::always_inline]] inline void to_4bit(const T* from, uint8_t* codes, float* scales, const FourBits& format,
                                           int64_t count) {
  const Ranks ranks(format.codebook);
  each_block(count, [&](int64_t block, int64_t first, int64_t size) {
    float scale = largest(from + first, size);
    if (format.signed_scale) {
      const T* end = from + first + size;
      const T* at = std::find_if(from + first, end, [&](T value) { return std::abs(load(value)) == scale; });
      if (at != end && load(*at) > 0) scale = -scale;
    }
    scales[block] = scale;
    const float inverse = reciprocal(scale);
    std::array<uint32_t, kBlock> rank{};
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float value = load(from[first + i]) * inverse;
      uint32_t above = 0;
      for (size_t k = 0; k < 15; ++k) above += value > ranks.midpoints[k] ? 1u : 0u;
      rank[static_cast<size_t>(i)] = above;
    }
    const auto code = [&](int64_t i) -> unsigned { return i < size ? ranks.codes[rank[static_cast<size_t>(i)]] : 0u; };
    for (int64_t i = 0; i < size; i += 2) {
      codes[(first + i) / 2] = static_cast<uint8_t>((code(i) << 4) | code(i + 1));
    }
  });
}

template <typename T>
[[gnu::always_inline]] inline void to_8bit(const T* from, int8_t* codes, float* scales, int64_t count) {
  each_block(count, [&](int64_t block, int64_t first, int64_t size) {
    const float scale = largest(from + first, size) / 127.0f;
    scales[block] = scale;
    const float inverse = reciprocal(scale);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float code = std::min(127.0f, std::max(-127.0f, load(from[first + i]) * inverse));
      codes[first + i] = static_cast<int8_t>((code + kRoundToInteger) - kRoundToInteger);
    }
  });
}

template <typename T>
[[gnu::always_inline]] inline void from_8bit(const int8_t* codes, const float* scales, T* to, int64_t count) {
  each_block(count, [&](int64_t block, int64_t first, int64_t size) {
    const float scale = scales[block];
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) store(&to[first + i], static_cast<float>(codes[first + i]) * scale);
  });
}

/// The 16 values of a block, as T keeps them.
template <typename T>
[[gnu::always_inline]] inline std::array<T, 16> values_of(const std::array<float, 16>& codebook, float scale) {
  std::array<T, 16> values;
#pragma omp simd
  for (size_t code = 0; code < 16; ++code) store(&values[code], codebook[code] * scale);
  return values;
}

template <typename T>
[[gnu::always_inline]] inline void look_up(const uint8_t* codes, const std::array<T, 16>& values, T* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const unsigned pair = codes[i / 2];
    to[i] = values[i % 2 == 0 ? pair >> 4 : pair & 15u];
  }
}

#if defined(__GNUC__) && !defined(__clang__)  // clang permutes by constants only
/// A whole block, 32 elements at a time: a permutation of 16-bit elements, one instruction of AVX-512.
[[gnu::always_inline]] inline void look_up_block(const uint8_t* codes, const std::array<BFloat16, 16>& values,
                                                 BFloat16* to) {
  using Bytes = uint8_t __attribute__((vector_size(16)));
  using Pairs = uint32_t __attribute__((vector_size(64)));
  using Halves = uint16_t __attribute__((vector_size(64)));
  Halves table;
  std::memcpy(&table, values.data(), 32);
  std::memcpy(reinterpret_cast<char*>(&table) + 32, values.data(), 32);
  for (int64_t i = 0; i < kBlock; i += 32) {
    Bytes bytes;
    std::memcpy(&bytes, codes + i / 2, sizeof(bytes));
    Pairs pairs = __builtin_convertvector(bytes, Pairs);
    pairs = (pairs >> 4) | ((pairs & 15u) << 16);  // the even element is the lower half
    const Halves found = __builtin_shuffle(table, reinterpret_cast<Halves>(pairs));
    std::memcpy(to + i, &found, sizeof(found));
  }
}
#else
[[gnu::always_inline]] inline void look_up_block(const uint8_t* codes, const std::array<BFloat16, 16>& values,
                                                 BFloat16* to) {
  look_up(codes, values, to, kBlock);
}
#endif
[[gnu::always_inline]] inline void look_up_block(const uint8_t* codes, const std::array<float, 16>& values, float* to) {
  look_up(codes, values, to, kBlock);
}

template <typename T>
[[gnu::always_inline]] inline void from_4bit(const uint8_t* codes, const float* scales, T* to,
                                             const std::array<float, 16>& codebook, int64_t count) {
  each_block(count, [&](int64_t block, int64_t first, int64_t size) {
    const std::array<T, 16> values = values_of<T>(codebook, scales[block]);
    if (size == kBlock) {
      look_up_block(codes + first / 2, values, to + first);
    } else {
      look_up(codes + first / 2, values, to + first, size);
    }
  });
}

}  // namespace

FETTLE_MULTIVERSION void quantize_4bit(const float* from, uint8_t* codes, float* scales, const FourBits& format,
                                       int64_t count) {
  to_4bit(from, codes, scales, format, count);
}
FETTLE_MULTIVERSION void quantize_4bit(const BFloat16* from, uint8_t* codes, float* scales, const FourBits& format,
                                       int64_t count) {
  to_4bit(from, codes, scales, format, count);
}
FETTLE_MULTIVERSION void quantize_8bit(const float* from, int8_t* codes, float* scales, int64_t count) {
  to_8bit(from, codes, scales, count);
}
FETTLE_MULTIVERSION void quantize_8bit(const BFloat16* from, int8_t* codes, float* scales, int64_t count) {
  to_8bit(from, codes, scales, count);
}
FETTLE_MULTIVERSION void dequantize_4bit(const uint8_t* codes, const float* scales, float* to,
                                         const std::array<float, 16>& codebook, int64_t count) {
  from_4bit(codes, scales, to, codebook, count);
}
FETTLE_MULTIVERSION void dequantize_4bit(const uint8_t* codes, const float* scales, BFloat16* to,
                                         const std::array<float, 16>& codebook, int64_t count) {
  from_4bit(codes, scales, to, codebook, count);
}
FETTLE_MULTIVERSION void dequantize_8bit(const int8_t* codes, const float* scales, float* to, int64_t count) {
  from_8bit(codes, scales, to, count);
}
FETTLE_MULTIVERSION void dequantize_8bit(const int8_t* codes, const float* scales, BFloat16* to, int64_t count) {
  from_8bit(codes, scales, to, count);
}

}  // namespace fettle::ops::cpu
