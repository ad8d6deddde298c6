// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

namespace fettle::ops::cpu {
namespace {

template <typename T>
[[gnu::always_inline]] inline void forward(const T* gate, const T* up, T* y, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = load(gate[i]);
    store(&y[i], g * sigmoid(g) * load(up[i]));
  }
}

template <typename T>
[[gnu::always_inline]] inline void backward(const SwigluGradient<T>& arrays, int64_t count) {
  const T* dy = arrays.dy;
  const T* gate = arrays.gate;
  const T* up = arrays.up;
  T* d_gate = arrays.d_gate;
  T* d_up = arrays.d_up;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = load(gate[i]);
    const float gradient = load(dy[i]);
    const float s = sigmoid(g);
    store(&d_up[i], gradient * g * s);
    store(&d_gate[i], gradient * load(up[i]) * (s + g * s * (1.0f - s)));
  }
}

}  // namespace

FETTLE_MULTIVERSION void swiglu(const float* gate, const float* up, float* y, int64_t count) {
  forward(gate, up, y, count);
}
FETTLE_MULTIVERSION void swiglu(const BFloat16* gate, const BFloat16* up, BFloat16* y, int64_t count) {
  forward(gate, up, y, count);
}
FETTLE_MULTIVERSION void swiglu_backward(const SwigluGradient<float>& arrays, int64_t count) {
  backward(arrays, count);
}
FETTLE_MULTIVERSION void swiglu_backward(const SwigluGradient<BFloat16>& arrays, int64_t count) {
  backward(arrays, count);
}

}  // namespace fettle::ops::cpu
