// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/device.cuh"

namespace fettle::ops::cuda {
namespace {

// Finite for every finite x: where the exponential overflows, 1 / ∞ is the 0 that is meant.
__device__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

template <typename T, int kWidth>
__device__ void forward_at(const Swiglu& p, int64_t i) {
  float gate[kWidth];
  float up[kWidth];
  load(static_cast<const T*>(p.gate) + i, gate);
  load(static_cast<const T*>(p.up) + i, up);
  for (int k = 0; k < kWidth; ++k) up[k] *= gate[k] * sigmoid(gate[k]);
  store(static_cast<T*>(p.y) + i, up);
}

template <typename T, int kWidth>
__device__ void backward_at(const SwigluGradient& p, int64_t i) {
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

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) forward(Swiglu p) {
  const int64_t whole = p.count - p.count % kWidth;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = thread_of_grid() * kWidth; i < whole; i += threads * kWidth) forward_at<T, kWidth>(p, i);
  for (int64_t i = whole + thread_of_grid(); i < p.count; i += threads) forward_at<T, 1>(p, i);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) backward(SwigluGradient p) {
  const int64_t whole = p.count - p.count % kWidth;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = thread_of_grid() * kWidth; i < whole; i += threads * kWidth) backward_at<T, kWidth>(p, i);
  for (int64_t i = whole + thread_of_grid(); i < p.count; i += threads) backward_at<T, 1>(p, i);
}

Grid grid_of(int64_t count, int width) {
  return {.blocks = divide_up(count, int64_t{kThreads} * width)};
}

}  // namespace

Failure swiglu(const Swiglu& p, void* stream) {
  return with_type(p.type, [&]<typename T>(T) {
    constexpr int kWidth = kVector<T>;
    return is_vectorizable<T>(0, p.gate, p.up, p.y) ? launch(forward<T, kWidth>, grid_of(p.count, kWidth), stream, p)
                                                    : launch(forward<T, 1>, grid_of(p.count, 1), stream, p);
  });
}

Failure swiglu_backward(const SwigluGradient& p, void* stream) {
  return with_type(p.type, [&]<typename T>(T) {
    constexpr int kWidth = kVector<T>;
    return is_vectorizable<T>(0, p.dy, p.gate, p.up, p.d_gate, p.d_up)
               ? launch(backward<T, kWidth>, grid_of(p.count, kWidth), stream, p)
               : launch(backward<T, 1>, grid_of(p.count, 1), stream, p);
  });
}

}  // namespace fettle::ops::cuda
