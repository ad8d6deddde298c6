// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

namespace fettle::ops::cpu {
namespace {

// Columns [begin, end) of a row.
struct Visible {
  int64_t begin;
  int64_t end;
};

// The queries that see the key of a row.
[[gnu::always_inline]] inline Visible seeing_queries(int64_t row, const AttentionStep& step) {
  const int64_t end =
      step.window > 0 ? std::clamp<int64_t>(row - step.shift + step.window, 0, step.queries) : step.queries;
  return {std::clamp<int64_t>(row - step.shift, 0, end), end};
}

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896341f;  // softmax in powers of two: one multiplication less an element

// The visible columns of a row, widened to whole vectors: a loop's rest, element by element, would cost more than what
// it leaves out. What is thereby taken in is given no weight.
[[gnu::always_inline]] inline Visible mask(Visible seen, float* scores) {
  constexpr int64_t kVector = 16;  // a row is a multiple of it
  const Visible range{seen.begin / kVector * kVector, (seen.end + kVector - 1) / kVector * kVector};
  std::fill(scores + range.begin, scores + seen.begin, kNone);
  std::fill(scores + seen.end, scores + range.end, kNone);
  return range;
}

template <typename T>
[[gnu::always_inline]] inline void clear_outside(T* row, Visible range, int64_t count) {
  std::fill(row, row + range.begin, T(0));
  std::fill(row + range.end, row + count, T(0));
}

// Row `row` of a block, its last element written: into the right operand.
[[gnu::always_inline]] inline void pack_row(const float* from, float* packed, int64_t row, const AttentionStep& step) {
  std::copy_n(from, step.columns, packed + row * step.stride);
}
[[gnu::always_inline]] inline void pack_row(const BFloat16* from, BFloat16* packed, int64_t row,
                                            const AttentionStep& step) {
  if (row % 2 == 1) interleave(from - step.stride, from, packed + (row - 1) * step.stride, step.columns);
}

template <typename T>
[[gnu::always_inline]] inline void softmax_step(const AttentionSoftmaxStep<T>& arrays, const AttentionStep& step) {
  const float scale = step.scale * kLog2E;
  float* const factors = arrays.factors;
  std::copy_n(arrays.largest, step.columns, factors);
  for (int64_t row = 0; row < step.rows; ++row) {
    float* scores = arrays.scores + row * step.stride;
    const Visible range = mask(seeing_queries(row, step), scores);
#pragma omp simd
    for (int64_t i = range.begin; i < range.end; ++i) {
      const float score = scores[i] * scale;
      arrays.largest[i] = score > arrays.largest[i] ? score : arrays.largest[i];
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < step.columns; ++i) {
    factors[i] = power_of_two(factors[i] - arrays.largest[i]);
    arrays.sums[i] *= factors[i];
  }
  for (int64_t row = 0; row < step.rows; ++row) {
    const float* scores = arrays.scores + row * step.stride;
    T* weights = arrays.weights + row * step.stride;
    const Visible range = mask(seeing_queries(row, step), arrays.scores + row * step.stride);
    clear_outside(weights, range, step.columns);
#pragma omp simd
    for (int64_t i = range.begin; i < range.end; ++i) {
      const float weight = power_of_two(scores[i] * scale - arrays.largest[i]);
      arrays.sums[i] += weight;
      store_computed(&weights[i], weight);
    }
    pack_row(weights, arrays.packed, row, step);
  }
}

template <typename T>
[[gnu::always_inline]] inline void gradient_step(const AttentionGradientStep<T>& arrays, const AttentionStep& step) {
  const float scale = step.scale * kLog2E;
  for (int64_t row = 0; row < step.rows; ++row) {
    float* scores = arrays.scores + row * step.stride;
    const float* d_weights = arrays.d_weights + row * step.stride;
    T* weights = arrays.weights + row * step.stride;
    T* d_scores = arrays.d_scores + row * step.stride;
    const Visible range = mask(seeing_queries(row, step), scores);
    clear_outside(weights, range, step.columns);
    clear_outside(d_scores, range, step.columns);
#pragma omp simd
    for (int64_t i = range.begin; i < range.end; ++i) {
      const float weight = power_of_two(scores[i] * scale - arrays.log_sums[i]);
      store_computed(&weights[i], weight);
      store_computed(&d_scores[i], weight * (d_weights[i] - arrays.offsets[i]) * step.scale);
    }
    pack_row(d_scores, arrays.packed, row, step);
  }
}

[[gnu::always_inline]] inline void scale_columns(float* rows, const float* factors, const PaddedRows& size) {
  for (int64_t row = 0; row < size.rows; ++row, rows += size.stride) {
#pragma omp simd
    for (int64_t i = 0; i < size.columns; ++i) rows[i] *= factors[i];
  }
}

template <typename T>
[[gnu::always_inline]] inline void sum_groups(const float* from, T* to, const AttentionGroups& size) {
  for (int64_t row = 0; row < size.rows; ++row) {
    for (int64_t i = 0; i < size.columns; ++i) {
      float sum = 0;
      for (int64_t head = 0; head < size.heads; ++head) sum += from[(head * size.rows + row) * size.columns + i];
      store(&to[row * size.stride + i], sum);
    }
  }
}

template <typename T>
[[gnu::always_inline]] inline void dots_of_rows(const T* a, const T* b, float* dots, const AttentionDots& size) {
  for (int64_t row = 0; row < size.rows; ++row, a += size.stride_a, b += size.stride_b) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size.columns; ++i) sum += load(a[i]) * load(b[i]);
    dots[row] = sum;
  }
}

}  // namespace

#define FETTLE_ATTENTION_KERNELS(T)                                                                              \
  FETTLE_MULTIVERSION void attention_softmax_step(const AttentionSoftmaxStep<T>& arrays, AttentionStep step) {   \
    softmax_step(arrays, step);                                                                                  \
  }                                                                                                              \
  FETTLE_MULTIVERSION void attention_gradient_step(const AttentionGradientStep<T>& arrays, AttentionStep step) { \
    gradient_step(arrays, step);                                                                                 \
  }                                                                                                              \
  FETTLE_MULTIVERSION void attention_sum_groups(const float* from, T* to, AttentionGroups size) {                \
    sum_groups(from, to, size);                                                                                  \
  }                                                                                                              \
  FETTLE_MULTIVERSION void attention_dots(const T* a, const T* b, float* dots, AttentionDots size) {             \
    dots_of_rows(a, b, dots, size);                                                                              \
  }
FETTLE_MULTIVERSION void attention_scale_columns(float* rows, const float* factors, PaddedRows size) {
  scale_columns(rows, factors, size);
}
FETTLE_ATTENTION_KERNELS(float)
FETTLE_ATTENTION_KERNELS(BFloat16)

}  // namespace fettle::ops::cpu
