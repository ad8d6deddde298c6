// SPDX-License-Identifier: Apache-2.0
#include "quantize/gptq_kernel.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/simd.h"

namespace fettle::quantize::cpu {
namespace {

[[gnu::always_inline]] inline void find_range(const GptqBlock& block, const GptqRow& row, int64_t column) {
  float lowest = 0;
  float highest = 0;
#pragma omp simd reduction(min : lowest) reduction(max : highest)
  for (int64_t i = column; i < column + block.group; ++i) {
    lowest = row.weight[i] < lowest ? row.weight[i] : lowest;
    highest = row.weight[i] > highest ? row.weight[i] : highest;
  }
  const auto steps = static_cast<float>((1 << block.bits) - 1);
  const int32_t group = block.groups[column];
  if (block.symmetric) {
    row.scales[group] = block.storable(std::max(-lowest, highest) * (2 / steps));
    row.zeros[group] = static_cast<float>(1 << (block.bits - 1));
  } else {
    row.scales[group] = block.storable((highest - lowest) / steps);
    const float zero = std::nearbyint(-lowest / row.scales[group]);
    row.zeros[group] = std::clamp(zero, static_cast<float>(block.lowest_zero), steps);
  }
}

}  // namespace

FETTLE_MULTIVERSION void gptq_block(const GptqBlock& block, const GptqRow& row) {
  const auto largest = static_cast<float>((1 << block.bits) - 1);
  float* weight = row.weight + block.first;
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t column = block.first + i;
    if (block.finds_ranges && column % block.group == 0) find_range(block, row, column);
    const int32_t group = block.groups[column];
    const float code = std::clamp(std::nearbyint(weight[i] / row.scales[group]) + row.zeros[group], 0.0f, largest);
    row.codes[column] = static_cast<uint8_t>(code);
    const float* factor = block.factor + i * block.count;
    const float error = (weight[i] - (code - row.zeros[group]) * row.scales[group]) / factor[i];
    row.errors[i] = error;
#pragma omp simd
    for (int64_t k = i + 1; k < block.count; ++k) weight[k] -= error * factor[k];
  }
}

}  // namespace fettle::quantize::cpu
