// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/device.cuh"

namespace fettle::ops::cuda {
namespace {

// Finite for every finite x: where the exponential overflows, 1 / ∞ is the 0 that is meant.
__device__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

template <typename T, int kWidth>
__device__ void compute(const Swiglu& p, int64_t i) {
  float gate[kWidth];
  float up[kWidth];
  load(static_cast<const T*>(p.gate) + i, gate);
  load(static_cast<const T*>(p.up) + i, up);
  for (int k = 0; k < kWidth; ++k) up[k] *= gate[k] * sigmoid(gate[k]);
  store(static_cast<T*>(p.y) + i, up);
}

template <typename T, int kWidth>
__device__ void compute(const SwigluGradient& p, int64_t i) {
  float dy[kWidth];
  float gate[kWidth];
  float up[kWidth];
  load(static_cast<const T*>(p.dy) + i, dy);
  load(static_cast<const T*>(p.gate) + i, gate);
  load(static_cast<const T*>(p.up) + i, up);
  for (int k = 0; k < kWidth; ++k) {
    const float g = gate[k];
    const float s = sigmoid(g);
    gate[k] = dy[k] * up[k] * (s + g * s * (1.0f - s));
    up[k] = dy[k] * g * s;
  }
  store(static_cast<T*>(p.d_gate) + i, gate);
  store(static_cast<T*>(p.d_up) + i, up);
}

__device__ int64_t thread_of_grid() {
  return int64_t{blockIdx.x} * kThreads + threadIdx.x;
}

template <typename T, int kWidth, typename Arguments>
__global__ void __launch_bounds__(kThreads) each(Arguments p) {
  const int64_t whole = p.count - p.count % kWidth;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = thread_of_grid() * kWidth; i < whole; i += threads * kWidth) compute<T, kWidth>(p, i);
  for (int64_t i = whole + thread_of_grid(); i < p.count; i += threads) compute<T, 1>(p, i);
}

template <typename T, typename Arguments>
Failure run(const Arguments& p, bool by_vectors, void* stream) {
  constexpr int kWidth = kVector<T>;
  const Grid grid{.blocks = divide_up(p.count, int64_t{kThreads} * (by_vectors ? kWidth : 1))};
  return by_vectors ? launch(each<T, kWidth, Arguments>, grid, stream, p)
                    : launch(each<T, 1, Arguments>, grid, stream, p);
}

}  // namespace

Failure swiglu(const Swiglu& p, void* stream) {
  return with_type(p.type, [&]<typename T>(T) { return run<T>(p, is_vectorizable<T>(0, p.gate, p.up, p.y), stream); });
}

Failure swiglu_backward(const SwigluGradient& p, void* stream) {
  return with_type(p.type, [&]<typename T>(T) {
    return run<T>(p, is_vectorizable<T>(0, p.dy, p.gate, p.up, p.d_gate, p.d_up), stream);
  });
}

}  // namespace fettle::ops::cuda
