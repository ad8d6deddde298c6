// SPDX-License-Identifier: Apache-2.0
#include "ops/gram.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

namespace fettle::ops {
namespace {

class Gram : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t>> {};

void expect_gram(const at::Tensor& x) {
  const at::Tensor sums = at::ones({x.size(1), x.size(1)});
  add_gram(sums, x);
  add_gram(sums, x);
  const at::Tensor exact = x.to(at::kDouble).t().mm(x.to(at::kDouble)) * 2 + 1;
  // Each of the sums of T products is rounded T times at most.
  const double bound = static_cast<double>(2 * x.size(0) + 2) * 6e-8 * (exact.diagonal().max().item<double>() + 1);
  EXPECT_LE((sums.to(at::kDouble) - exact).abs().max().item<double>(), bound);
}

TEST_P(Gram, AddsProductsInFloat32) {
  const auto [type, tokens, columns] = GetParam();
  expect_gram(at::randn({tokens, columns}).to(type));
}

TEST_P(Gram, TakesColumnsOfAWiderMatrix) {
  const auto [type, tokens, columns] = GetParam();
  expect_gram(at::randn({tokens, columns + 3}).to(type).narrow(1, 2, columns));
}

INSTANTIATE_TEST_SUITE_P(All, Gram,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16), ::testing::Values(1, 37, 512),
                                            ::testing::Values(1, 48, 130)));

}  // namespace
}  // namespace fettle::ops
