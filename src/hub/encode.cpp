// SPDX-License-Identifier: Apache-2.0
/// Compiled without fused multiply-adds, which would round some quotients to other integers than ggml's.
#include "hub/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/error.h"

namespace fettle::hub {
namespace {

constexpr size_t kBlock = 32;  // values of a quantized block
using Quants = std::array<uint8_t, kBlock>;

template <typename T>
std::byte* store(T value, std::byte* out) {
  std::memcpy(out, &value, sizeof(T));
  return out + sizeof(T);
}

/// To IEEE half. A subnormal result is rounded by the addition of 0.5, whose last bit is worth as much as the half's.
uint16_t to_half(float value) {
  constexpr uint32_t kSmallestNormal = 113U << 23;  // 2^-14
  constexpr uint32_t kHalf = 126U << 23;            // 0.5
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits & 0x80000000U;
  const uint32_t magnitude = bits ^ sign;
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - kHalf;
  const uint32_t normal = (magnitude - (112U << 23) + 0xFFFU + (magnitude >> 13 & 1U)) >> 13;
  return static_cast<uint16_t>((magnitude < kSmallestNormal ? subnormal : normal) | sign >> 16);
}

uint16_t to_bfloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

template <typename Convert>
void encode_plain(std::span<const float> values, std::byte* out, Convert convert) {
  for (size_t i = 0; i < values.size(); ++i) store(convert(values[i]), out + i * sizeof(uint16_t));
}

/// 1/scale; 0 where the scale is 0, or so small that a half is 0 and the quotients do not matter.
float inverse_of(float scale) {
  const float inverse = 1.0F / scale;
  return std::isfinite(inverse) ? inverse : 0.0F;
}

/// The value that is furthest from 0, the first of equals.
float extreme(const float* values) {
  float largest = 0;
  float result = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    if (largest < std::abs(values[i])) {
      largest = std::abs(values[i]);
      result = values[i];
    }
  }
  return result;
}

std::byte* store_nibbles(const Quants& quants, std::byte* out) {
  for (size_t i = 0; i < kBlock / 2; ++i) {
    out[i] = static_cast<std::byte>((quants[i] & 0xFU) | (quants[i + kBlock / 2] & 0xFU) << 4);
  }
  return out + kBlock / 2;
}

std::byte* store_fifth_bits(const Quants& quants, std::byte* out) {
  uint32_t bits = 0;
  for (size_t i = 0; i < kBlock; ++i) bits |= static_cast<uint32_t>(quants[i] >> 4 & 1U) << i;
  return store(bits, out);
}

/// Rounded half away from zero, as C's roundf.
int8_t rounded(float value) {
  const float magnitude = std::abs(value);
  const auto whole = static_cast<int>(magnitude);
  const int up = magnitude - static_cast<float>(whole) >= 0.5F ? whole + 1 : whole;
  return static_cast<int8_t>(value < 0 ? -up : up);
}

void encode_q8_0(const float* values, std::byte* out) {
  const float scale = std::abs(extreme(values)) / 127;
  const float inverse = inverse_of(scale);
  out = store(to_half(scale), out);
  for (size_t i = 0; i < kBlock; ++i) out[i] = static_cast<std::byte>(rounded(values[i] * inverse));
}

/// q4_0 (levels 16) and q5_0 (32): the extreme is -levels/2 scales, the middle level is 0.
template <int kLevels>
void encode_symmetric(const float* values, std::byte* out) {
  const float scale = extreme(values) / -(kLevels / 2);
  const float inverse = inverse_of(scale);
  Quants quants;
  for (size_t i = 0; i < kBlock; ++i) {
    const int level = static_cast<int>(values[i] * inverse + (static_cast<float>(kLevels / 2) + 0.5F));
    quants[i] = static_cast<uint8_t>(std::min(kLevels - 1, level));
  }
  out = store(to_half(scale), out);
  if constexpr (kLevels == 32) out = store_fifth_bits(quants, out);
  store_nibbles(quants, out);
}

/// q4_1 and q5_1: from the minimum in steps of the scale.
template <int kLevels>
void encode_from_minimum(const float* values, std::byte* out) {
  float minimum = FLT_MAX;
  float maximum = -FLT_MAX;
  for (size_t i = 0; i < kBlock; ++i) {
    if (values[i] < minimum) minimum = values[i];
    if (values[i] > maximum) maximum = values[i];
  }
  const float scale = (maximum - minimum) / (kLevels - 1);
  const float inverse = inverse_of(scale);
  Quants quants;
  for (size_t i = 0; i < kBlock; ++i) {
    const int level = static_cast<int>((values[i] - minimum) * inverse + 0.5F);
    quants[i] = static_cast<uint8_t>(std::min(kLevels - 1, level));
  }
  out = store(to_half(scale), out);
  out = store(to_half(minimum), out);
  if constexpr (kLevels == 32) out = store_fifth_bits(quants, out);
  store_nibbles(quants, out);
}

template <typename Encode>
void encode_blocks(std::span<const float> values, DType dtype, std::byte* out, Encode encode) {
  for (size_t i = 0; i < values.size(); i += kBlock) {
    encode(values.data() + i, out);
    out += block_layout(dtype).bytes;
  }
}

/// Magnitudes from here on, as bits, become infinite.
uint32_t limit_of(DType dtype) {
  if (dtype == DType::kF32) return 0x7F800000U;
  return dtype == DType::kBF16 ? 0x7F7F8000U : std::bit_cast<uint32_t>(65520.0F);
}

}  // namespace

void encode_floats(std::span<const float> values, DType dtype, std::byte* out) {
  if (values.size() % static_cast<size_t>(block_layout(dtype).elements) != 0) {
    throw Error(ExitCode::kInternal, fmt::format("{} values are not whole blocks", values.size()));
  }
  switch (dtype) {
    case DType::kF32:
      if (!values.empty()) std::memcpy(out, values.data(), values.size_bytes());
      return;
    case DType::kF16:
      return encode_plain(values, out, to_half);
    case DType::kBF16:
      return encode_plain(values, out, to_bfloat);
    case DType::kQ8_0:
      return encode_blocks(values, dtype, out, encode_q8_0);
    case DType::kQ4_0:
      return encode_blocks(values, dtype, out, encode_symmetric<16>);
    case DType::kQ4_1:
      return encode_blocks(values, dtype, out, encode_from_minimum<16>);
    case DType::kQ5_0:
      return encode_blocks(values, dtype, out, encode_symmetric<32>);
    case DType::kQ5_1:
      return encode_blocks(values, dtype, out, encode_from_minimum<32>);
    default:
      throw Error(ExitCode::kInternal, fmt::format("floats are not written as {}", dtype_name(dtype)));
  }
}

std::optional<float> find_unstorable(std::span<const float> values, DType dtype) {
  const uint32_t limit = limit_of(dtype);
  const auto is_too_large = [limit](float value) { return (std::bit_cast<uint32_t>(value) & 0x7FFFFFFFU) >= limit; };
  bool found = false;  // the search stops nowhere, so that the compiler vectorises it
  for (const float value : values) found |= is_too_large(value);
  return found ? std::optional(*std::ranges::find_if(values, is_too_large)) : std::nullopt;
}

}  // namespace fettle::hub
