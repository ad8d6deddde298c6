// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

namespace fettle::ops::cpu {
namespace {

// A NaN logit makes the sum, and so the loss and the whole gradient row, NaN: divergence is seen, not hidden.
template <typename T>
[[gnu::always_inline]] inline void rows(T* logits, const int64_t* labels, float* losses, CrossEntropyRows size) {
  for (int64_t row = 0; row < size.rows; ++row, logits += size.columns) {
    float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < size.columns; ++i) {
      const float value = load(logits[i]);
      largest = value > largest ? value : largest;
    }
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size.columns; ++i) {
      sum += exponential(load(logits[i]) - largest);
    }
    const int64_t label = labels[row];
    losses[row] = std::log(sum) + largest - load(logits[label]);
    if (!size.write_gradient) {
      continue;
    }
    const float inverse = 1.0f / sum;
    const float at_label = exponential(load(logits[label]) - largest) * inverse - 1.0f;
#pragma omp simd
    for (int64_t i = 0; i < size.columns; ++i) {
      store(&logits[i], exponential(load(logits[i]) - largest) * inverse);
    }
    store(&logits[label], at_label);
  }
}

}  // namespace

FETTLE_MULTIVERSION void cross_entropy(float* logits, const int64_t* labels, float* losses, CrossEntropyRows size) {
  rows(logits, labels, losses, size);
}
FETTLE_MULTIVERSION void cross_entropy(BFloat16* logits, const int64_t* labels, float* losses, CrossEntropyRows size) {
  rows(logits, labels, losses, size);
}

}  // namespace fettle::ops::cpu
