// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

namespace fettle::ops::cpu {
namespace {

template <typename T>
[[gnu::always_inline]] inline void forward(const T* x, const T* weight, T* y, float* inverse_rms, RmsNormRows size) {
  for (int64_t row = 0; row < size.rows; ++row, x += size.columns, y += size.columns) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size.columns; ++i) {
      squares += load(x[i]) * load(x[i]);
    }
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(size.columns) + size.eps);
    inverse_rms[row] = inverse;
#pragma omp simd
    for (int64_t i = 0; i < size.columns; ++i) {
      store(&y[i], load(weight[i]) * round_to<T>(load(x[i]) * inverse));
    }
  }
}

// With n = x·r and g = dy·weight: dx = r·(g - n·mean(g·n)).
template <typename T>
[[gnu::always_inline]] inline void backward(const RmsNormGradient<T>& arrays, RmsNormRows size) {
  for (int64_t row = 0; row < size.rows; ++row) {
    const T* dy = arrays.dy + row * size.columns;
    const T* x = arrays.x + row * size.columns;
    T* dx = arrays.dx + row * size.columns;
    const T* weight = arrays.weight;
    const float inverse = arrays.inverse_rms[row];
    float product = 0;
#pragma omp simd reduction(+ : product)
    for (int64_t i = 0; i < size.columns; ++i) {
      product += load(dy[i]) * load(weight[i]) * load(x[i]);
    }
    const float mean = product * inverse * inverse / static_cast<float>(size.columns);
    if (float* d_weight = arrays.d_weight; d_weight != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < size.columns; ++i) {
        d_weight[i] += load(dy[i]) * round_to<T>(load(x[i]) * inverse);
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < size.columns; ++i) {
      store(&dx[i], inverse * (load(dy[i]) * load(weight[i]) - load(x[i]) * mean));
    }
  }
}

}  // namespace

FETTLE_MULTIVERSION void rms_norm(const float* x, const float* weight, float* y, float* inverse_rms, RmsNormRows size) {
  forward(x, weight, y, inverse_rms, size);
}
FETTLE_MULTIVERSION void rms_norm(const BFloat16* x, const BFloat16* weight, BFloat16* y, float* inverse_rms,
                                  RmsNormRows size) {
  forward(x, weight, y, inverse_rms, size);
}
FETTLE_MULTIVERSION void rms_norm_backward(const RmsNormGradient<float>& arrays, RmsNormRows size) {
  backward(arrays, size);
}
FETTLE_MULTIVERSION void rms_norm_backward(const RmsNormGradient<BFloat16>& arrays, RmsNormRows size) {
  backward(arrays, size);
}

}  // namespace fettle::ops::cpu
