// SPDX-License-Identifier: Apache-2.0
/// What linear layers that share an input are given on the calibration records.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fettle::quantize {

class InputStatistics {
 public:
  /// Of inputs of C columns, on `device`.
  InputStatistics(int64_t columns, at::Device device);

  /// Tokens [T, C], float32 or bfloat16.
  void add(const at::Tensor& x);

  /// X^T X / tokens, float32 [C, C]: half the Hessian of the mean squared error of a layer's output by its weights, so
  /// that a change D of them [O, C] changes the output by the mean square sum((D·H) ∘ D).
  [[nodiscard]] at::Tensor hessian() const;
  /// Mean of |x|, float32 [C].
  [[nodiscard]] at::Tensor magnitudes() const;
  [[nodiscard]] int64_t tokens() const { return tokens_; }

 private:
  at::Tensor products_;
  at::Tensor absolute_;
  int64_t tokens_ = 0;
};

/// sum((D·H) ∘ D): what the change D [O, C] of the weights does to the output.
double output_error(const at::Tensor& change, const at::Tensor& hessian);

}  // namespace fettle::quantize
