// SPDX-License-Identifier: Apache-2.0
/// The CPU kernels: arithmetic over contiguous rows, no checks, no tensors, no threads (the front doors split rows).
/// Each exists for float and c10::BFloat16 and computes in float32.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace fettle::ops::cpu {

using c10::BFloat16;

/// y = weight · cast(x · inverse_rms), row by row; inverse_rms [rows] is written for the backward.
struct RmsNormRows {
  int64_t rows;
  int64_t columns;
  float eps;
};
void rms_norm(const float* x, const float* weight, float* y, float* inverse_rms, RmsNormRows size);
void rms_norm(const BFloat16* x, const BFloat16* weight, BFloat16* y, float* inverse_rms, RmsNormRows size);

/// dx from dy; d_weight [columns], if not null, receives the sum over these rows (added to what is there).
template <typename T>
struct RmsNormGradient {
  const T* dy;
  const T* x;
  const T* weight;
  const float* inverse_rms;
  T* dx;
  float* d_weight;
};
void rms_norm_backward(const RmsNormGradient<float>& arrays, RmsNormRows size);
void rms_norm_backward(const RmsNormGradient<BFloat16>& arrays, RmsNormRows size);

/// Rotates the first 2·half elements of `heads` heads of `head_dim` elements per token; sign -1 turns back.
struct RotaryRows {
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t half;
  float sign;
};
void rotary(const float* x, const float* cos, const float* sin, float* y, RotaryRows size);
void rotary(const BFloat16* x, const BFloat16* cos, const BFloat16* sin, BFloat16* y, RotaryRows size);

void swiglu(const float* gate, const float* up, float* y, int64_t count);
void swiglu(const BFloat16* gate, const BFloat16* up, BFloat16* y, int64_t count);

template <typename T>
struct SwigluGradient {
  const T* dy;
  const T* gate;
  const T* up;
  T* d_gate;
  T* d_up;
};
void swiglu_backward(const SwigluGradient<float>& arrays, int64_t count);
void swiglu_backward(const SwigluGradient<BFloat16>& arrays, int64_t count);

/// Rows of a block of attention scores: for every head the same `queries` consecutive queries, and `keys` consecutive
/// keys. Query i stands at key i + shift and sees the keys up to its own, the last `window` of them (0: all).
struct AttentionRows {
  int64_t rows;       ///< of this call
  int64_t first_row;  ///< its place in the block: query = row % queries
  int64_t queries;
  int64_t keys;
  int64_t shift;
  int64_t window;
  float scale;
};
/// scores → softmax(scale · scores) over the visible keys, 0 elsewhere; log_sums[row] = log Σ exp(scale · score).
void attention_softmax(float* scores, float* log_sums, AttentionRows size);
void attention_softmax(BFloat16* scores, float* log_sums, AttentionRows size);
/// The same probabilities again from the log_sums.
void attention_probabilities(float* scores, const float* log_sums, AttentionRows size);
void attention_probabilities(BFloat16* scores, const float* log_sums, AttentionRows size);
/// d_probabilities → gradient of the scores: p · (dp - offset[row]) · scale, with offset = Σ dp·p of the whole row.
void attention_scores_gradient(const float* probabilities, float* d_probabilities, const float* offsets,
                               AttentionRows size);
void attention_scores_gradient(const BFloat16* probabilities, BFloat16* d_probabilities, const float* offsets,
                               AttentionRows size);
/// dots[row] = Σ a[row][i]·b[row][i]
void row_dots(const float* a, const float* b, float* dots, int64_t rows, int64_t columns);
void row_dots(const BFloat16* a, const BFloat16* b, float* dots, int64_t rows, int64_t columns);

/// losses[i] = log Σ exp(logits[i]) - logits[i][labels[i]]; with `write_gradient` each row of logits is overwritten by
/// softmax(row) - onehot(label).
struct CrossEntropyRows {
  int64_t rows;
  int64_t columns;
  bool write_gradient;
};
void cross_entropy(float* logits, const int64_t* labels, float* losses, CrossEntropyRows size);
void cross_entropy(BFloat16* logits, const int64_t* labels, float* losses, CrossEntropyRows size);

}  // namespace fettle::ops::cpu
