// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/device.cuh"

namespace fettle::ops::cuda {
namespace {

// A block has a token; threads of one line (x) have the elements of a head, kWidth at once, and lines (y) the heads.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) rotate(Rotary p) {
  for (int64_t token = blockIdx.x; token < p.tokens; token += gridDim.x) {
    const T* cos = static_cast<const T*>(p.cos) + token * p.half;
    const T* sin = static_cast<const T*>(p.sin) + token * p.half;
    for (int64_t head = threadIdx.y; head < p.heads; head += blockDim.y) {
      const T* x = static_cast<const T*>(p.x) + (token * p.heads + head) * p.head_dim;
      T* y = static_cast<T*>(p.y) + (token * p.heads + head) * p.head_dim;
      for (int64_t i = int64_t{threadIdx.x} * kWidth; i < p.half; i += int64_t{blockDim.x} * kWidth) {
        float first[kWidth];
        float second[kWidth];
        float c[kWidth];
        float s[kWidth];
        load(x + i, first);
        load(x + i + p.half, second);
        load(cos + i, c);
        load(sin + i, s);
        for (int k = 0; k < kWidth; ++k) {
          const float turned = first[k] * c[k] - second[k] * (s[k] * p.sign);
          second[k] = second[k] * c[k] + first[k] * (s[k] * p.sign);
          first[k] = turned;
        }
        store(y + i, first);
        store(y + i + p.half, second);
      }
      for (int64_t i = 2 * p.half + threadIdx.x; i < p.head_dim; i += blockDim.x) y[i] = x[i];
    }
  }
}

template <typename T, int kWidth>
Failure run(const Rotary& p, void* stream) {
  const int64_t vectors = std::max(divide_up(p.half, kWidth), divide_up(p.head_dim - 2 * p.half, 4));
  unsigned across = 1;
  while (across < kWarp && across < vectors) across *= 2;
  const dim3 threads(across, kThreads / across);
  return launch(rotate<T, kWidth>, {.blocks = p.heads * p.head_dim == 0 ? 0 : p.tokens, .threads = threads}, stream, p);
}

}  // namespace

Failure rotary(const Rotary& p, void* stream) {
  return with_type(p.type, [&]<typename T>(T) {
    const bool by_vectors = is_vectorizable<T>(p.head_dim, p.x, p.y) && is_vectorizable<T>(p.half, p.cos, p.sin);
    return by_vectors ? run<T, kVector<T>>(p, stream) : run<T, 1>(p, stream);
  });
}

}  // namespace fettle::ops::cuda
