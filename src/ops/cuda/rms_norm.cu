// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/device.cuh"

// A row is read twice, from memory and then from the cache: the rows that an SM works on fit there. Why dx and d_weight
// are two kernels: one that does both keeps a sum for every column in a few large blocks, too few to reach the memory's
// speed at most widths. The weights of norms are trained in full fine-tuning only, where the second reading of x and dy
// is nothing beside the products.

namespace fettle::ops::cuda {
namespace {

// A row is the work of kRowThreads threads: a warp, or the block.
template <typename T, int kWidth, int kRowThreads>
__global__ void __launch_bounds__(kThreads) forward_rows(RmsNorm p) {
  constexpr int kRows = kThreads / kRowThreads;
  const int64_t lane = threadIdx.x % kRowThreads;
  const int64_t stride = int64_t{gridDim.x} * kRows;
  for (int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kRowThreads; row < p.rows; row += stride) {
    const T* x = static_cast<const T*>(p.x) + row * p.columns;
    T* y = static_cast<T*>(p.y) + row * p.columns;
    float squares = 0;
    for (int64_t i = lane * kWidth; i < p.columns; i += kRowThreads * kWidth) {
      float values[kWidth];
      load(x + i, values);
      for (int k = 0; k < kWidth; ++k) squares += values[k] * values[k];
    }
    const float mean = sum_over<kRowThreads>(squares) / static_cast<float>(p.columns);
    const float inverse = 1.0f / sqrtf(mean + p.eps);
    if (lane == 0) p.inverse_rms[row] = inverse;
    for (int64_t i = lane * kWidth; i < p.columns; i += kRowThreads * kWidth) {
      float values[kWidth];
      float weight[kWidth];
      load(x + i, values);
      load(static_cast<const T*>(p.weight) + i, weight);
      for (int k = 0; k < kWidth; ++k) values[k] = weight[k] * round_to<T>(values[k] * inverse);
      store(y + i, values);
    }
  }
}

// With n = x·r and g = dy·weight: dx = r·(g - n·mean(g·n)).
template <typename T, int kWidth, int kRowThreads>
__global__ void __launch_bounds__(kThreads) backward_rows(RmsNormGradient p) {
  constexpr int kRows = kThreads / kRowThreads;
  const int64_t lane = threadIdx.x % kRowThreads;
  const int64_t stride = int64_t{gridDim.x} * kRows;
  const T* weights = static_cast<const T*>(p.weight);
  for (int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kRowThreads; row < p.rows; row += stride) {
    const T* x = static_cast<const T*>(p.x) + row * p.columns;
    const T* dy = static_cast<const T*>(p.dy) + row * p.columns;
    T* dx = static_cast<T*>(p.dx) + row * p.columns;
    float values[kWidth];
    float gradients[kWidth];
    float weight[kWidth];
    float product = 0;
    for (int64_t i = lane * kWidth; i < p.columns; i += kRowThreads * kWidth) {
      load(x + i, values);
      load(dy + i, gradients);
      load(weights + i, weight);
      for (int k = 0; k < kWidth; ++k) product += gradients[k] * weight[k] * values[k];
    }
    const float inverse = p.inverse_rms[row];
    const float mean = sum_over<kRowThreads>(product) * inverse * inverse / static_cast<float>(p.columns);
    for (int64_t i = lane * kWidth; i < p.columns; i += kRowThreads * kWidth) {
      load(x + i, values);
      load(dy + i, gradients);
      load(weights + i, weight);
      for (int k = 0; k < kWidth; ++k) values[k] = inverse * (gradients[k] * weight[k] - values[k] * mean);
      store(dx + i, values);
    }
  }
}

constexpr int kLines = kThreads / kWarp;  // of a block of kWarp × kLines threads

// partial[piece][column] = Σ dy · cast(x · inverse_rms) over the rows piece·kLines + line + n·pieces·kLines: a thread
// has kWidth columns of a line, and the lines of a block are added up in order.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) weight_gradient(RmsNormGradient p, int64_t pieces) {
  __shared__ float lines[kLines][kWarp * kWidth];
  const int64_t piece = blockIdx.y;
  for (int64_t tile = blockIdx.x; tile * kWarp * kWidth < p.columns; tile += gridDim.x) {
    const int64_t column = (tile * kWarp + threadIdx.x) * kWidth;
    float sums[kWidth] = {};
    if (column < p.columns) {
      for (int64_t row = piece * kLines + threadIdx.y; row < p.rows; row += pieces * kLines) {
        float values[kWidth];
        float gradients[kWidth];
        load(static_cast<const T*>(p.x) + row * p.columns + column, values);
        load(static_cast<const T*>(p.dy) + row * p.columns + column, gradients);
        const float inverse = p.inverse_rms[row];
        for (int k = 0; k < kWidth; ++k) sums[k] += gradients[k] * round_to<T>(values[k] * inverse);
      }
    }
    __syncthreads();  // the lines of the tile before have been read
    for (int k = 0; k < kWidth; ++k) lines[threadIdx.y][threadIdx.x * kWidth + k] = sums[k];
    __syncthreads();
    const int own = static_cast<int>(threadIdx.y) * kWarp + static_cast<int>(threadIdx.x);
    const int64_t first = tile * kWarp * kWidth;
    if (own < kWarp * kWidth && first + own < p.columns) {
      float sum = 0;
      for (int line = 0; line < kLines; ++line) sum += lines[line][own];
      p.partial[piece * p.columns + first + own] = sum;
    }
  }
}

// d_weight[column] = Σ partial[piece][column].
template <typename T>
__global__ void __launch_bounds__(kThreads) sum_pieces(RmsNormGradient p, int64_t pieces) {
  __shared__ float lines[kLines][kWarp];
  for (int64_t tile = blockIdx.x; tile * kWarp < p.columns; tile += gridDim.x) {
    const int64_t column = tile * kWarp + threadIdx.x;
    float sum = 0;
    if (column < p.columns) {
      for (int64_t piece = threadIdx.y; piece < pieces; piece += kLines) sum += p.partial[piece * p.columns + column];
    }
    __syncthreads();  // the lines of the tile before have been read
    lines[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < p.columns) {
      for (int line = 1; line < kLines; ++line) sum += lines[line][threadIdx.x];
      static_cast<T*>(p.d_weight)[column] = from_float<T>(sum);
    }
  }
}

// More vectors a lane, and a warp's row takes longer than a block's.
constexpr int64_t kMostVectorsOfAWarp = 4 * kWarp;

template <typename T, int kWidth>
Failure forward(const RmsNorm& p, void* stream) {
  if (p.columns / kWidth <= kMostVectorsOfAWarp) {
    return launch(forward_rows<T, kWidth, kWarp>, {.blocks = divide_up(p.rows, kThreads / kWarp)}, stream, p);
  }
  return launch(forward_rows<T, kWidth, kThreads>, {.blocks = p.rows}, stream, p);
}

template <typename T, int kWidth>
Failure backward(const RmsNormGradient& p, void* stream) {
  const bool by_warp = p.columns / kWidth <= kMostVectorsOfAWarp;
  const Failure failure =
      by_warp ? launch(backward_rows<T, kWidth, kWarp>, {.blocks = divide_up(p.rows, kThreads / kWarp)}, stream, p)
              : launch(backward_rows<T, kWidth, kThreads>, {.blocks = p.rows}, stream, p);
  if (failure != nullptr || p.d_weight == nullptr) return failure;
  const int64_t pieces = weight_gradient_pieces(p.rows, p.columns);
  const dim3 threads(kWarp, kLines);
  const Grid grid{.blocks = divide_up(p.columns, kWarp * kWidth), .threads = threads, .pieces = pieces};
  if (const Failure in_pieces = launch(weight_gradient<T, kWidth>, grid, stream, p, pieces)) return in_pieces;
  return launch(sum_pieces<T>, {.blocks = divide_up(p.columns, kWarp), .threads = threads}, stream, p, pieces);
}

}  // namespace

Failure rms_norm(const RmsNorm& p, void* stream) {
  return with_type(p.type, [&]<typename T>(T) {
    return is_vectorizable<T>(p.columns, p.x, p.weight, p.y) ? forward<T, kVector<T>>(p, stream)
                                                             : forward<T, 1>(p, stream);
  });
}

Failure rms_norm_backward(const RmsNormGradient& p, void* stream) {
  return with_type(p.type, [&]<typename T>(T) {
    return is_vectorizable<T>(p.columns, p.dy, p.x, p.weight, p.dx) ? backward<T, kVector<T>>(p, stream)
                                                                    : backward<T, 1>(p, stream);
  });
}

}  // namespace fettle::ops::cuda
