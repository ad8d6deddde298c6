// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

namespace fettle::ops::cpu {
namespace {

template <typename T>
[[gnu::always_inline]] inline void rotate(const T* x, const T* cos, const T* sin, T* y, RotaryRows size) {
  for (int64_t token = 0; token < size.tokens; ++token, cos += size.half, sin += size.half) {
    for (int64_t head = 0; head < size.heads; ++head, x += size.head_dim, y += size.head_dim) {
#pragma omp simd
      for (int64_t i = 0; i < size.half; ++i) {
        const float first = load(x[i]);
        const float second = load(x[i + size.half]);
        const float c = load(cos[i]);
        const float s = load(sin[i]) * size.sign;
        store(&y[i], first * c - second * s);
        store(&y[i + size.half], second * c + first * s);
      }
      std::copy(x + 2 * size.half, x + size.head_dim, y + 2 * size.half);
    }
  }
}

}  // namespace

FETTLE_MULTIVERSION void rotary(const float* x, const float* cos, const float* sin, float* y, RotaryRows size) {
  rotate(x, cos, sin, y, size);
}
FETTLE_MULTIVERSION void rotary(const BFloat16* x, const BFloat16* cos, const BFloat16* sin, BFloat16* y,
                                RotaryRows size) {
  rotate(x, cos, sin, y, size);
}

}  // namespace fettle::ops::cpu
