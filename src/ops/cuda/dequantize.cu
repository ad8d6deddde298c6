// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/device.cuh"

namespace fettle::ops::cuda {
namespace {

constexpr int kCodebook = 16;

// The scale of an element. Groups are nearly always a power of two: the 64-bit division of the others takes longer than
// the memory does.
struct Scales {
  const float* values;
  int64_t group;
  int shift;  // log2 of the group, or -1
  __device__ float of(int64_t i) const { return values[shift >= 0 ? i >> shift : i / group]; }
};

// The values of kWidth elements from the i-th on, which begin a byte. `one_scale`: no group begins among them.
template <typename T, int kBits, int kWidth>
__device__ void decode(const Dequantize& p, const Scales& scales, const float* codebook, int64_t i) {
  constexpr int kBytes = (kWidth * kBits + 7) / 8;
  const auto* codes = static_cast<const uint8_t*>(p.codes) + (kBits == 4 ? i / 2 : i);
  const auto bytes = *reinterpret_cast<const Elements<uint8_t, kBytes>*>(codes);
  const bool one_scale = scales.group % kWidth == 0;
  const float scale = scales.of(i);
  float values[kWidth];
  for (int k = 0; k < kWidth; ++k) {
    if constexpr (kBits == 4) {
      const unsigned byte = bytes.values[k / 2];
      values[k] = codebook[(i + k) % 2 == 0 ? byte >> 4 : byte & 15u];
    } else {
      values[k] = static_cast<float>(static_cast<int8_t>(bytes.values[k]));
    }
    values[k] *= one_scale ? scale : scales.of(i + k);
  }
  store(static_cast<T*>(p.values) + i, values);
}

template <typename T, int kBits, int kWidth>
__global__ void __launch_bounds__(kThreads) values(Dequantize p, Scales scales) {
  __shared__ float codebook[kCodebook];
  if (kBits == 4 && threadIdx.x < kCodebook) codebook[threadIdx.x] = p.codebook[threadIdx.x];
  __syncthreads();
  const int64_t whole = p.count - p.count % kWidth;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = thread * kWidth; i < whole; i += threads * kWidth) {
    decode<T, kBits, kWidth>(p, scales, codebook, i);
  }
  for (int64_t i = whole + thread; i < p.count; i += threads) decode<T, kBits, 1>(p, scales, codebook, i);
}

int log2_or_none(int64_t group) {
  int shift = 0;
  while ((int64_t{1} << shift) < group) ++shift;
  return int64_t{1} << shift == group ? shift : -1;
}

template <typename T, int kBits>
Failure run(const Dequantize& p, void* stream) {
  constexpr int kWidth = kVector<T>;
  const Scales scales{p.scales, p.group, log2_or_none(p.group)};
  const bool by_vectors =
      is_vectorizable<T>(0, p.values) && reinterpret_cast<uintptr_t>(p.codes) % (kWidth * kBits / 8) == 0;
  const int64_t blocks = divide_up(p.count, int64_t{kThreads} * (by_vectors ? kWidth : 1));
  return by_vectors ? launch(values<T, kBits, kWidth>, {.blocks = blocks}, stream, p, scales)
                    : launch(values<T, kBits, 1>, {.blocks = blocks}, stream, p, scales);
}

}  // namespace

Failure dequantize(const Dequantize& p, void* stream) {
  if (p.group <= 0 || (p.bits != 4 && p.bits != 8)) return "dequantize: 4 or 8 bits, and groups of at least 1 element";
  return with_type(p.type, [&]<typename T>(T) { return p.bits == 4 ? run<T, 4>(p, stream) : run<T, 8>(p, stream); });
}

}  // namespace fettle::ops::cuda
