// SPDX-License-Identifier: Apache-2.0
/// What the CUDA kernels share: elements in float32, 16 bytes at a time; sums over a warp or block; the launch.
///
/// Kernels bring no dynamic parallelism, textures or inline assembly, and are launched through cudaLaunchKernelEx, not
/// <<<>>>: so the same source also compiles as plain C++ against tests/ops/cuda/emulation, where their tests run. A
/// kernel may be launched with fewer blocks than there is work: it strides.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "ops/cuda/kernels.h"

namespace fettle::ops::cuda {

using BFloat16 = __nv_bfloat16;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 256;

__device__ inline float to_float(float value) {
  return value;
}
__device__ inline float to_float(BFloat16 value) {
  return __bfloat162float(value);
}

/// To nearest even; NaN stays NaN.
template <typename T>
__device__ T from_float(float value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    return __float2bfloat16_rn(value);
  }
}

/// `value` as the type T would keep it.
template <typename T>
__device__ float round_to(float value) {
  return to_float(from_float<T>(value));
}

/// Elements that a thread reads or writes at once: 16 bytes.
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Elements {
  T values[kWidth];
};

/// kWidth elements from where they are aligned as a whole.
template <typename T, int kWidth>
__device__ void load(const T* from, float (&to)[kWidth]) {
  const auto elements = *reinterpret_cast<const Elements<T, kWidth>*>(from);
  for (int k = 0; k < kWidth; ++k) to[k] = to_float(elements.values[k]);
}
template <typename T, int kWidth>
__device__ void store(T* to, const float (&from)[kWidth]) {
  Elements<T, kWidth> elements;
  for (int k = 0; k < kWidth; ++k) elements.values[k] = from_float<T>(from[k]);
  *reinterpret_cast<Elements<T, kWidth>*>(to) = elements;
}

__device__ inline float warp_sum(float value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}
__device__ inline float warp_max(float value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, lanes));
  return value;
}

/// The sum over a warp (kCount = 32) or a block of kCount threads; every one of them gets it.
template <int kCount>
__device__ float sum_over(float value) {
  value = warp_sum(value);
  if constexpr (kCount > kWarp) {
    constexpr int kWarps = kCount / kWarp;
    __shared__ float parts[kWarps];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    __syncthreads();  // the parts of the sum before this one have been read
    if (lane == 0) parts[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = warp_sum(lane < kWarps ? parts[lane] : 0.0f);
  }
  return value;
}

/// Whether rows of `columns` elements of T in all these arrays can be read and written 16 bytes at a time.
template <typename T, typename... Arrays>
bool is_vectorizable(int64_t columns, const Arrays*... arrays) {
  return columns % kVector<T> == 0 && ((reinterpret_cast<uintptr_t>(arrays) % 16 == 0) && ...);
}

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct Grid {
  int64_t blocks;
  dim3 threads = dim3(kThreads);
  int64_t pieces = 1;  ///< the grid's second dimension
};

/// kernel(arguments...) on `stream`. No block is launched for no work.
template <typename... Parameters, typename... Arguments>
Failure launch(void (*kernel)(Parameters...), const Grid& grid, void* stream, const Arguments&... arguments) {
  constexpr int64_t kMostBlocks = 1 << 20;
  if (grid.blocks == 0) return nullptr;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min(grid.blocks, kMostBlocks)), static_cast<unsigned>(grid.pieces));
  config.blockDim = grid.threads;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

/// run(an element of the type).
template <typename Run>
Failure with_type(Type type, Run run) {
  return type == Type::kFloat ? run(float{}) : run(BFloat16{});
}

Failure rms_norm(const RmsNorm& arguments, void* stream);
Failure rms_norm_backward(const RmsNormGradient& arguments, void* stream);
Failure rotary(const Rotary& arguments, void* stream);
Failure swiglu(const Swiglu& arguments, void* stream);
Failure swiglu_backward(const SwigluGradient& arguments, void* stream);
Failure cross_entropy(const CrossEntropy& arguments, void* stream);
Failure dequantize(const Dequantize& arguments, void* stream);

}  // namespace fettle::ops::cuda
