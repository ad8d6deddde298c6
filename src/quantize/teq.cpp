// SPDX-License-Identifier: Apache-2.0
#include "quantize/teq.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

namespace fettle::quantize {

// With D = Q(W·s)/s - W and L = sum((D·H) ∘ D): rounding counts as the identity, dQ(W·s)/d(W·s) = 1, so
// dD/ds = W/s - Q(W·s)/s² = -D/s, and dL/d(log s) = -2·sum over the rows of (D·H) ∘ D. log s keeps s positive.
at::Tensor train_factors(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme,
                         const TeqOptions& options) {
  constexpr double kBeta = 0.9;
  constexpr double kEpsilon = 1e-8;
  at::Tensor logarithms = at::zeros({weight.size(1)}, weight.options());
  at::Tensor mean = at::zeros_like(logarithms);
  at::Tensor square = at::zeros_like(logarithms);
  at::Tensor best = logarithms;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t step = 0; step <= options.steps; ++step) {
    const at::Tensor factors = logarithms.exp();
    const at::Tensor change = rtn(weight * factors, scheme).values() / factors - weight;
    const at::Tensor errors = at::mm(change, hessian).mul_(change).sum(0);
    if (const double error = errors.sum().item<double>(); error < least) {
      least = error;
      best = logarithms;
    }
    const at::Tensor gradient = errors * -2;
    mean = mean * kBeta + gradient * (1 - kBeta);
    square = square * kBeta + gradient * gradient * (1 - kBeta);
    const double correction = 1 - std::pow(kBeta, static_cast<double>(step + 1));
    const double rate = options.learning_rate * (1 - static_cast<double>(step) / static_cast<double>(options.steps));
    logarithms = logarithms - mean / correction / ((square / correction).sqrt() + kEpsilon) * rate;
  }
  return best.exp();
}

}  // namespace fettle::quantize
