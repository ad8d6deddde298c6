// SPDX-License-Identifier: Apache-2.0
#include "quantize/teq.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace fettle::quantize {

namespace {

/// Adds to each group's columns with the smallest and the largest weight what the group's error says of its range.
void add_range_gradient(at::Tensor& gradient, const at::Tensor& scaled, const at::Tensor& errors,
                        const Scheme& scheme) {
  const int64_t columns = scaled.size(1);
  const int64_t group = scheme.group_of(columns);
  const at::Tensor groups = scaled.view({scaled.size(0), columns / group, group});
  const at::Tensor group_errors = errors.view(groups.sizes()).sum(-1);  // [O, G]
  const at::Tensor first = at::arange(0, columns, group, scaled.options().dtype(at::kLong));
  const auto add = [&](const at::Tensor& index, const at::Tensor& part) {
    gradient.scatter_add_(0, (index + first).flatten(), (group_errors * part).flatten());
  };
  if (scheme.symmetric) return add(groups.abs().argmax(-1), at::ones_like(group_errors));
  const at::Tensor highest = groups.amax(-1).clamp_min(0);
  const at::Tensor lowest = groups.amin(-1).clamp_max(0);
  const at::Tensor range = (highest - lowest).clamp_min(1e-30);
  add(groups.argmax(-1), highest / range);
  add(groups.argmin(-1), -lowest / range);
}

}  // namespace

// With D = Q(W·s)/s - W, e = (D·H) ∘ D and L = sum(e): rounding counts as the identity, so dQ(W·s)/d(W·s) = 1, and
// dD/ds = W/s - Q(W·s)/s² = -D/s: dL/d(log s) has -2·sum over the rows of e. The range of a group grows with the s of
// the weight that bounds it, and moves all codes of the group: there it has +2·e of the whole group. Together they sum
// to 0, as they must: one factor for a whole group changes nothing. log s keeps s positive.
at::Tensor train_factors(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme,
                         const TeqOptions& options, const Tie& tie) {
  constexpr double kBeta = 0.9;
  constexpr double kEpsilon = 1e-8;
  at::Tensor logarithms = at::zeros({weight.size(1)}, weight.options());
  at::Tensor mean = at::zeros_like(logarithms);
  at::Tensor square = at::zeros_like(logarithms);
  at::Tensor best = logarithms;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t step = 0; step <= options.steps; ++step) {
    const at::Tensor factors = logarithms.exp();
    const at::Tensor scaled = weight * factors;
    const at::Tensor change = rtn(scaled, scheme).values() / factors - weight;
    const at::Tensor errors = at::mm(change, hessian).mul_(change);
    if (const double error = errors.sum().item<double>(); error < least) {
      least = error;
      best = logarithms;
    }
    at::Tensor gradient = -errors.sum(0);
    add_range_gradient(gradient, scaled, errors, scheme);
    gradient = tie(gradient) / least;  // of order 1, so that kEpsilon is small beside it
    mean = mean * kBeta + gradient * (1 - kBeta);
    square = square * kBeta + gradient * gradient * (1 - kBeta);
    const double correction = 1 - std::pow(kBeta, static_cast<double>(step + 1));
    const double rate = options.learning_rate *
                        (1 - static_cast<double>(step) / static_cast<double>(std::max<int64_t>(1, options.steps)));
    logarithms = logarithms - mean / correction / ((square / correction).sqrt() + kEpsilon) * rate;
  }
  return best.exp();
}

}  // namespace fettle::quantize
