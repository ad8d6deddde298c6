// SPDX-License-Identifier: Apache-2.0
/// What the tests of the operators share: one tolerance table, random inputs, gradients.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <string>
#include <vector>

#include "ops/dispatch.h"

namespace fettle::ops::testing {

/// Largest difference from a float64 result, relative to the largest element of it. float32: a few hundred roundings
/// of 6e-8; bfloat16: inputs are exact, so one rounding of the result (2^-9) and of an intermediate or two.
inline double tolerance(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return 1e-12;
    case at::kFloat:
      return 5e-6;
    default:
      return 1.6e-2;
  }
}

/// Every element type that the operators take.
inline const std::vector<at::ScalarType>& types() {
  static const std::vector<at::ScalarType> all{at::kFloat, at::kBFloat16, at::kDouble};
  return all;
}

/// Numbers that bfloat16 holds exactly, so that every type starts from the same inputs.
inline at::Tensor random(at::IntArrayRef shape) {
  return at::randn(shape, at::kDouble).to(at::kBFloat16).to(at::kDouble);
}

/// While it lives, every operator takes its twin.
class WithoutFusedOps {
 public:
  WithoutFusedOps() { set_fused_ops(false); }
  ~WithoutFusedOps() { set_fused_ops(true); }
  WithoutFusedOps(const WithoutFusedOps&) = delete;
  WithoutFusedOps& operator=(const WithoutFusedOps&) = delete;
};

using Operator = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

/// The result, then the gradient of every input under the output gradient `seed`.
inline std::vector<at::Tensor> run(const Operator& op, const std::vector<at::Tensor>& inputs, at::ScalarType type,
                                   const at::Tensor& seed) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& input : inputs) {
    leaves.push_back(input.to(type, /*non_blocking=*/false, /*copy=*/true).requires_grad_(true));
  }
  const at::Tensor y = op(leaves);
  torch::autograd::backward({y}, {seed.to(y.scalar_type()).reshape(y.sizes())});
  std::vector<at::Tensor> results{y.detach()};
  for (const at::Tensor& leaf : leaves) {
    EXPECT_TRUE(leaf.grad().defined());
    results.push_back(leaf.grad());
  }
  return results;
}

inline void expect_close(const at::Tensor& actual, const at::Tensor& expected, double relative,
                         const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  const double largest = expected.numel() == 0 ? 0.0 : expected.to(at::kDouble).abs().max().item<double>();
  const double difference =
      expected.numel() == 0 ? 0.0 : (actual.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
  EXPECT_LE(difference, relative * std::max(largest, 1e-3)) << what << ": largest element " << largest;
}

/// `op` in every type against `twin` in float64: result and gradients.
inline void expect_matches_twin(const Operator& op, const Operator& twin, const std::vector<at::Tensor>& inputs) {
  at::Tensor shape_source;
  {
    const at::NoGradGuard no_gradients;
    shape_source = twin(inputs);
  }
  const at::Tensor seed = random(shape_source.sizes());
  const auto expected = run(twin, inputs, at::kDouble, seed);
  for (const at::ScalarType type : types()) {
    const auto actual = run(op, inputs, type, seed);
    for (size_t i = 0; i < expected.size(); ++i) {
      expect_close(actual[i], expected[i], tolerance(type),
                   std::string(c10::toString(type)) + (i == 0 ? " result" : " gradient " + std::to_string(i - 1)));
    }
  }
}

}  // namespace fettle::ops::testing
