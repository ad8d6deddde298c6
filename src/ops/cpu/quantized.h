// SPDX-License-Identifier: Apache-2.0
/// CPU kernels of weights in few bits: `count` elements of whole blocks of kQuantizationBlock, the last perhaps short.
/// Codes and scales as in ops/quantized_weight.h.
#pragma once

#include <c10/util/BFloat16.h>

#include <array>
#include <cstdint>

namespace fettle::ops::cpu {

using c10::BFloat16;

struct FourBits {
  const std::array<float, 16>& codebook;
  bool signed_scale;  ///< the scale has the sign that makes the largest element -1
};
void quantize_4bit(const float* from, uint8_t* codes, float* scales, const FourBits& format, int64_t count);
void quantize_4bit(const BFloat16* from, uint8_t* codes, float* scales, const FourBits& format, int64_t count);
void quantize_8bit(const float* from, int8_t* codes, float* scales, int64_t count);
void quantize_8bit(const BFloat16* from, int8_t* codes, float* scales, int64_t count);

void dequantize_4bit(const uint8_t* codes, const float* scales, float* to, const std::array<float, 16>& codebook,
                     int64_t count);
void dequantize_4bit(const uint8_t* codes, const float* scales, BFloat16* to, const std::array<float, 16>& codebook,
                     int64_t count);
void dequantize_8bit(const int8_t* codes, const float* scales, float* to, int64_t count);
void dequantize_8bit(const int8_t* codes, const float* scales, BFloat16* to, int64_t count);

}  // namespace fettle::ops::cpu
