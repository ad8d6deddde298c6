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

/// A block of attention scores [rows, columns], `stride` elements a row: rows are keys and columns queries, consecutive
/// tokens of one document, and the first query stands `shift` tokens behind the first key. Rows are an even number,
/// columns a multiple of 16.
struct AttentionStep {
  int64_t rows;
  int64_t columns;
  int64_t stride;
  int64_t queries;  ///< columns that are real
  int64_t shift;
  int64_t window;  ///< keys that a query sees, itself included; 0: all before it
  float scale;
};
/// The running softmax of a block of queries, in powers of two.
template <typename T>
struct AttentionSoftmaxStep {
  float* scores;   ///< overwritten
  float* largest;  ///< of every query, the largest scale · log2 e · score so far; finite at the start
  float* sums;     ///< of every query, Σ of the weights so far, relative to it
  float* factors;  ///< written: what this step multiplies earlier weights by
  T* weights;      ///< written: 2^(scale · log2 e · score - largest), 0 where the query does not see the key
  T* packed;       ///< written: the weights as the right operand of a product
};
void attention_softmax_step(const AttentionSoftmaxStep<float>& arrays, AttentionStep step);
void attention_softmax_step(const AttentionSoftmaxStep<BFloat16>& arrays, AttentionStep step);

template <typename T>
struct AttentionGradientStep {
  float* scores;  ///< overwritten
  const float* d_weights;
  const float* log_sums;  ///< of every query: log2 Σ exp(scale · score)
  const float* offsets;   ///< of every query: Σ d_output · output
  T* weights;             ///< written: exp(scale · score) / Σ
  T* d_scores;            ///< written: weight · (d_weight - offset) · scale
  T* packed;              ///< written: d_scores as the right operand of a product
};
void attention_gradient_step(const AttentionGradientStep<float>& arrays, AttentionStep step);
void attention_gradient_step(const AttentionGradientStep<BFloat16>& arrays, AttentionStep step);

/// Rows of `columns` elements, `stride` apart, and what they are padded to with zeros.
struct PaddedRows {
  int64_t rows;
  int64_t padded_rows;
  int64_t columns;
  int64_t padded_columns;
  int64_t stride;
};
/// to [padded_rows, padded_columns].
void copy_rows(const float* from, float* to, PaddedRows size);
void copy_rows(const BFloat16* from, BFloat16* to, PaddedRows size);
/// The same as the right operand of a product (brgemm.h); and its transpose [padded_columns, padded_rows] as one.
void pack_right(const float* from, float* to, PaddedRows size);
void pack_right(const BFloat16* from, BFloat16* to, PaddedRows size);
void pack_right_transposed(const float* from, float* to, PaddedRows size);
void pack_right_transposed(const BFloat16* from, BFloat16* to, PaddedRows size);
/// to [padded_columns, padded_rows], plain.
void transpose_rows(const float* from, float* to, PaddedRows size);
void transpose_rows(const BFloat16* from, BFloat16* to, PaddedRows size);
/// The rows from such a transpose: from [columns, padded_rows].
void store_transposed(const float* from, float* to, PaddedRows size);
void store_transposed(const float* from, BFloat16* to, PaddedRows size);
/// Each row times `factors`, element by element.
void attention_scale_columns(float* rows, const float* factors, PaddedRows size);

/// to [rows, columns], `stride` apart = Σ over heads of from [heads, rows, columns]
struct AttentionGroups {
  int64_t heads;
  int64_t rows;
  int64_t columns;
  int64_t stride;
};
void attention_sum_groups(const float* from, float* to, AttentionGroups size);
void attention_sum_groups(const float* from, BFloat16* to, AttentionGroups size);

/// dots[row] = Σ a[row][i]·b[row][i]
struct AttentionDots {
  int64_t rows;
  int64_t columns;
  int64_t stride_a;
  int64_t stride_b;
};
void attention_dots(const float* a, const float* b, float* dots, AttentionDots size);
void attention_dots(const BFloat16* a, const BFloat16* b, float* dots, AttentionDots size);

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
