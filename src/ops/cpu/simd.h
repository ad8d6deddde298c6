// SPDX-License-Identifier: Apache-2.0
/// What the CPU kernels share: bfloat16 as stored, an exponential that vectorises, and one source for every x86.
///
/// A kernel is a template over the element type, written as plain loops (`#pragma omp simd`), and wrapped per type in a
/// FETTLE_MULTIVERSION function that GCC emits for AVX-512 (with BW: 16-bit elements), AVX2 and plain x86-64; the
/// loader picks. Templates and helpers must be inlined into it (gnu::always_inline), or they would be for plain x86-64.
#pragma once

#include <c10/util/BFloat16.h>

#include <bit>
#include <cstdint>

#if !defined(__x86_64__) || defined(__clang__)  // clang 14 does not know the levels
#define FETTLE_MULTIVERSION
#elif __GNUC__ < 12  // knows single instruction sets: no BW and no FMA, but for AVX-512's own
#define FETTLE_MULTIVERSION __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FETTLE_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif

namespace fettle::ops::cpu {

[[gnu::always_inline]] inline float load(float value) {
  return value;
}
[[gnu::always_inline]] inline float load(c10::BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.x) << 16);
}

[[gnu::always_inline]] inline void store(float* to, float value) {
  *to = value;
}
/// A float's bits as bfloat16's, to nearest even; not for every NaN.
[[gnu::always_inline]] inline uint32_t rounded(uint32_t bits) {
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
/// Rounds to nearest even; NaN stays NaN.
[[gnu::always_inline]] inline void store(c10::BFloat16* to, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->x = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded(bits));
}

/// The same for a result of arithmetic: a NaN that a processor makes, or hands on from a bfloat16, survives without a
/// test.
[[gnu::always_inline]] inline void store_computed(float* to, float value) {
  *to = value;
}
[[gnu::always_inline]] inline void store_computed(c10::BFloat16* to, float value) {
  to->x = static_cast<uint16_t>(rounded(std::bit_cast<uint32_t>(value)));
}

/// Rows 2i and 2i+1 interleaved, as a right operand has them.
[[gnu::always_inline]] inline void interleave(const c10::BFloat16* even, const c10::BFloat16* odd, c10::BFloat16* to,
                                              int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    to[2 * i].x = even[i].x;
    to[2 * i + 1].x = odd[i].x;
  }
}

/// `value` as the type T would keep it.
template <typename T>
[[gnu::always_inline]] inline float round_to(float value) {
  T rounded;
  store(&rounded, value);
  return load(rounded);
}

constexpr float kRoundToInteger = 12582912.0f;  // 1.5·2²³: adding it leaves the nearest integer in the low bits
/// 2ⁿ from n + kRoundToInteger; 0.0 for n = -127.
[[gnu::always_inline]] inline float integer_power(float shifted) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127u) << 23);
}

/// e^x to 2 ulp; 0 below -87 (never a denormal), e^87 above 87; NaN stays NaN. Cephes' polynomial on x - n·ln 2.
[[gnu::always_inline]] inline float exponential(float x) {
  constexpr float kLimit = 87.0f;
  const bool vanishes = x < -kLimit;
  x = x > kLimit ? kLimit : x;
  x = vanishes ? -kLimit : x;
  const float shifted = x * 1.44269504088896341f + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return vanishes ? 0.0f : p * integer_power(shifted);
}

/// 2^x to 2 ulp, for x ≤ 127; exactly 0 from -127 down (never a denormal); NaN stays NaN. Its Taylor series on x - n.
[[gnu::always_inline]] inline float power_of_two(float x) {
  x = x < -127.0f ? -127.0f : x;
  const float shifted = x + kRoundToInteger;
  const float r = x - (shifted - kRoundToInteger);
  float p = 1.5403530394e-4f;
  p = p * r + 1.3333558146e-3f;
  p = p * r + 9.6181291076e-3f;
  p = p * r + 5.5504108665e-2f;
  p = p * r + 2.4022650696e-1f;
  p = p * r + 6.9314718056e-1f;
  p = p * r + 1.0f;
  return p * integer_power(shifted);
}

[[gnu::always_inline]] inline float sigmoid(float x) {
  return 1.0f / (1.0f + exponential(-x));
}

}  // namespace fettle::ops::cpu
