// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

namespace fettle::ops::cpu {
namespace {

// The keys [begin, end) that a row's query sees.
struct Visible {
  int64_t begin;
  int64_t end;
};
[[gnu::always_inline]] inline Visible visible(int64_t row, const AttentionRows& size) {
  const int64_t own = (size.first_row + row) % size.queries + size.shift;
  return {size.window > 0 ? std::max<int64_t>(0, own - size.window + 1) : 0, own + 1};
}

template <typename T>
[[gnu::always_inline]] inline void clear_invisible(T* row, Visible keys, int64_t count) {
  std::fill(row, row + keys.begin, T(0));
  std::fill(row + keys.end, row + count, T(0));
}

template <typename T>
[[gnu::always_inline]] inline void softmax(T* scores, float* log_sums, const AttentionRows& size) {
  for (int64_t row = 0; row < size.rows; ++row, scores += size.keys) {
    const Visible keys = visible(row, size);
    float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
    for (int64_t i = keys.begin; i < keys.end; ++i) {
      const float value = load(scores[i]) * size.scale;
      largest = value > largest ? value : largest;
    }
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = keys.begin; i < keys.end; ++i) {
      sum += exponential(load(scores[i]) * size.scale - largest);
    }
    const float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t i = keys.begin; i < keys.end; ++i) {
      store(&scores[i], exponential(load(scores[i]) * size.scale - largest) * inverse);
    }
    clear_invisible(scores, keys, size.keys);
    log_sums[row] = largest + std::log(sum);
  }
}

template <typename T>
[[gnu::always_inline]] inline void probabilities(T* scores, const float* log_sums, const AttentionRows& size) {
  for (int64_t row = 0; row < size.rows; ++row, scores += size.keys) {
    const Visible keys = visible(row, size);
    const float log_sum = log_sums[row];
#pragma omp simd
    for (int64_t i = keys.begin; i < keys.end; ++i) {
      store(&scores[i], exponential(load(scores[i]) * size.scale - log_sum));
    }
    clear_invisible(scores, keys, size.keys);
  }
}

template <typename T>
[[gnu::always_inline]] inline void scores_gradient(const T* p, T* gradient, const float* offsets,
                                                   const AttentionRows& size) {
  for (int64_t row = 0; row < size.rows; ++row, p += size.keys, gradient += size.keys) {
    const Visible keys = visible(row, size);
    const float offset = offsets[row];
#pragma omp simd
    for (int64_t i = keys.begin; i < keys.end; ++i) {
      store(&gradient[i], load(p[i]) * (load(gradient[i]) - offset) * size.scale);
    }
    clear_invisible(gradient, keys, size.keys);
  }
}

template <typename T>
[[gnu::always_inline]] inline void dots_of_rows(const T* a, const T* b, float* dots, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row, a += columns, b += columns) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < columns; ++i) {
      sum += load(a[i]) * load(b[i]);
    }
    dots[row] = sum;
  }
}

}  // namespace

FETTLE_MULTIVERSION void attention_softmax(float* scores, float* log_sums, AttentionRows size) {
  softmax(scores, log_sums, size);
}
FETTLE_MULTIVERSION void attention_softmax(BFloat16* scores, float* log_sums, AttentionRows size) {
  softmax(scores, log_sums, size);
}
FETTLE_MULTIVERSION void attention_probabilities(float* scores, const float* log_sums, AttentionRows size) {
  probabilities(scores, log_sums, size);
}
FETTLE_MULTIVERSION void attention_probabilities(BFloat16* scores, const float* log_sums, AttentionRows size) {
  probabilities(scores, log_sums, size);
}
FETTLE_MULTIVERSION void attention_scores_gradient(const float* p, float* gradient, const float* offsets,
                                                   AttentionRows size) {
  scores_gradient(p, gradient, offsets, size);
}
FETTLE_MULTIVERSION void attention_scores_gradient(const BFloat16* p, BFloat16* gradient, const float* offsets,
                                                   AttentionRows size) {
  scores_gradient(p, gradient, offsets, size);
}
FETTLE_MULTIVERSION void row_dots(const float* a, const float* b, float* dots, int64_t rows, int64_t columns) {
  dots_of_rows(a, b, dots, rows, columns);
}
FETTLE_MULTIVERSION void row_dots(const BFloat16* a, const BFloat16* b, float* dots, int64_t rows, int64_t columns) {
  dots_of_rows(a, b, dots, rows, columns);
}

}  // namespace fettle::ops::cpu
