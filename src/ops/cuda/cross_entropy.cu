// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "ops/cuda/device.cuh"

namespace fettle::ops::cuda {
namespace {

constexpr int kRowThreads = 512;
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Σ exp(value - largest) of the values so far. `largest` starts at a finite number, so that a logit of -∞ adds 0.
struct Softmax {
  float largest = kLowest;
  float sum = 0;
};

template <int kWidth>
__device__ void add(Softmax& softmax, const float (&values)[kWidth]) {
  float largest = softmax.largest;
  for (int k = 0; k < kWidth; ++k) largest = fmaxf(largest, values[k]);
  softmax.sum *= expf(softmax.largest - largest);
  for (int k = 0; k < kWidth; ++k) softmax.sum += expf(values[k] - largest);
  softmax.largest = largest;
}

__device__ Softmax warp_total(Softmax softmax) {
  const float largest = warp_max(softmax.largest);
  return {largest, warp_sum(softmax.sum * expf(softmax.largest - largest))};
}

// Over the block; every thread gets it.
__device__ Softmax block_total(Softmax softmax) {
  constexpr int kWarps = kRowThreads / kWarp;
  __shared__ float largest[kWarps];
  __shared__ float sums[kWarps];
  softmax = warp_total(softmax);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  __syncthreads();  // those of the row before have been read
  if (lane == 0) {
    largest[threadIdx.x / kWarp] = softmax.largest;
    sums[threadIdx.x / kWarp] = softmax.sum;
  }
  __syncthreads();
  return warp_total(lane < kWarps ? Softmax{largest[lane], sums[lane]} : Softmax{});
}

template <int kWidth>
struct Width {};

// visit(Width<n>, index) for the elements of a row, each by one thread: 16 bytes at once from the first aligned one on,
// and the few before and after one by one. Rows of an odd vocabulary all begin elsewhere in their 16 bytes.
template <typename T, typename Visit>
__device__ void visit_row(const T* row, int64_t columns, const Visit& visit) {
  constexpr int kWidth = kVector<T>;
  const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
  const int64_t before = misaligned == 0 ? 0 : min(columns, kWidth - misaligned);
  const int64_t whole = (columns - before) / kWidth * kWidth;
  for (int64_t i = int64_t{threadIdx.x} * kWidth; i < whole; i += kRowThreads * kWidth) {
    visit(Width<kWidth>(), before + i);
  }
  for (int64_t i = threadIdx.x; i < columns - whole; i += kRowThreads) {
    visit(Width<1>(), i < before ? i : i + whole);
  }
}

// A NaN logit makes the sum, and so the loss and the whole gradient row, NaN.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) rows(CrossEntropy p) {
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    T* logits = static_cast<T*>(p.logits) + row * p.columns;
    const int64_t label = p.labels[row];
    const bool counts = label != p.ignored;
    const bool is_column = 0 <= label && label < p.columns;
    Softmax softmax;
    if (counts) {
      visit_row(logits, p.columns, [&]<int kWidth>(Width<kWidth>, int64_t i) {
        float values[kWidth];
        load(logits + i, values);
        add(softmax, values);
      });
      softmax = block_total(softmax);
      if (!is_column) softmax.sum = kNan;
    }
    if (threadIdx.x == 0) {
      const float at_label = is_column ? to_float(logits[label]) : 0.0f;
      p.losses[row] = counts ? logf(softmax.sum) + softmax.largest - at_label : 0.0f;
    }
    if (!p.write_gradient) continue;
    __syncthreads();  // the label's logit has been read
    const float inverse = 1.0f / softmax.sum;
    visit_row(logits, p.columns, [&]<int kWidth>(Width<kWidth>, int64_t i) {
      float values[kWidth];
      load(logits + i, values);
      for (int k = 0; k < kWidth; ++k) {
        const float weight = expf(values[k] - softmax.largest) * inverse;
        values[k] = counts ? (i + k == label ? weight - 1.0f : weight) : 0.0f;
      }
      store(logits + i, values);
    });
  }
}

}  // namespace

Failure cross_entropy(const CrossEntropy& p, void* stream) {
  return with_type(p.type, [&]<typename T>(T) {
    return launch(rows<T>, {.blocks = p.rows, .threads = dim3(kRowThreads)}, stream, p);
  });
}

}  // namespace fettle::ops::cuda
