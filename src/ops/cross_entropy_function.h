// SPDX-License-Identifier: Apache-2.0
/// What the ways to compute linear_cross_entropy share: the autograd function around them. The gradients are computed
/// in the forward, so that nothing of V columns is kept for the backward, but for the weight's own gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fettle::ops {

struct CrossEntropyWanted {
  bool hidden_gradient;
  bool weight_gradient;
  int64_t chunk_rows;
};

struct CrossEntropyParts {
  at::Tensor loss;      ///< float32 scalar
  at::Tensor d_hidden;  ///< [T, C]; undefined: not wanted
  at::Tensor d_weight;  ///< [V, C], at least float32; undefined: not wanted
};

/// Of hidden [T, C], weight [V, C] and labels [T].
using ComputeCrossEntropy = CrossEntropyParts (*)(const at::Tensor& hidden, const at::Tensor& weight,
                                                  const at::Tensor& labels, const CrossEntropyWanted& wanted);

/// The loss by `compute`, `chunk_rows` rows at a time, differentiable where gradients are enabled.
at::Tensor apply_cross_entropy(ComputeCrossEntropy compute, const at::Tensor& hidden, const at::Tensor& weight,
                               const at::Tensor& labels, int64_t chunk_rows);

}  // namespace fettle::ops
