// SPDX-License-Identifier: Apache-2.0
/// What linear layers that share an input are given on the calibration records.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace fettle::quantize {

/// Of inputs X of C columns.
struct InputStatistics {
  /// X^T X / tokens, float32 [C, C]: half the Hessian of the mean squared error of a layer's output by its weights, so
  /// that a change D of them [O, C] changes the output by the mean square sum((D·H) ∘ D).
  at::Tensor hessian;
  at::Tensor magnitudes;  ///< mean of |x|, float32 [C]
};

/// What factors of the C inputs must have in common: a projection of their logarithms [C] that gives all of those that
/// have to be equal their mean.
using Tie = std::function<at::Tensor(const at::Tensor&)>;

/// Collects the statistics.
class InputSums {
 public:
  InputSums(int64_t columns, at::Device device);

  /// Tokens [T, C], float32 or bfloat16.
  void add(const at::Tensor& x);
  /// Call once.
  InputStatistics mean();

 private:
  at::Tensor products_;
  at::Tensor absolute_;
  int64_t tokens_ = 0;
};

/// sum((D·H) ∘ D): what the change D [O, C] of the weights does to the output.
double output_error(const at::Tensor& change, const at::Tensor& hessian);

}  // namespace fettle::quantize
