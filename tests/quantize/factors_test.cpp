// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include "quantize/awq.h"
#include "quantize/normal_matrix.h"
#include "quantize/range_search.h"
#include "quantize/teq.h"

namespace fettle::quantize {
namespace {

constexpr int64_t kInputs = 128;

/// Inputs of very different sizes that depend on each other.
InputStatistics inputs() {
  InputSums sums(kInputs, at::kCPU);
  const at::Tensor size = at::arange(kInputs, at::kFloat).mul_(-0.05).exp_();
  sums.add(at::mm(normal_matrix(1024, kInputs, 1), normal_matrix(kInputs, kInputs, 2)) * size);
  return sums.mean();
}

at::Tensor untied(const at::Tensor& logarithms) {
  return logarithms;
}

class Factors : public testing::TestWithParam<Scheme> {
 protected:
  [[nodiscard]] double error(const at::Tensor& factors) const {
    return output_error(rtn(weight_ * factors, GetParam()).values() / factors - weight_, inputs().hessian);
  }

  at::Tensor weight_ = normal_matrix(24, kInputs, 3);
  double without_ = error(at::ones({kInputs}));
};

TEST_P(Factors, FoundByAwqChangeTheOutputLess) {
  const at::Tensor factors = search_factors(weight_, inputs(), GetParam(), 20, untied);
  EXPECT_TRUE((factors > 0).all().item<bool>());
  EXPECT_LT(error(factors), 0.9 * without_);
}

TEST_P(Factors, TrainedByTeqChangeTheOutputLess) {
  const at::Tensor hessian = inputs().hessian;
  const at::Tensor factors = train_factors(weight_, hessian, GetParam(), {.steps = 100, .learning_rate = 1e-2}, untied);
  EXPECT_TRUE((factors > 0).all().item<bool>());
  EXPECT_LT(error(factors), 0.95 * without_);
  EXPECT_TRUE(at::equal(train_factors(weight_, hessian, GetParam(), {.steps = 0}, untied), at::ones({kInputs})));
}

TEST_P(Factors, AreTied) {
  const Tie halves = [](const at::Tensor& logarithms) {
    return logarithms.view({2, -1}).mean(0, /*keepdim=*/true).expand({2, kInputs / 2}).flatten();
  };
  for (const at::Tensor& factors : {search_factors(weight_, inputs(), GetParam(), 20, halves),
                                    train_factors(weight_, inputs().hessian, GetParam(), {}, halves)}) {
    EXPECT_TRUE(at::equal(factors.narrow(0, 0, kInputs / 2), factors.narrow(0, kInputs / 2, kInputs / 2)));
    EXPECT_FALSE(at::equal(factors, at::ones({kInputs})));
    EXPECT_LT(error(factors), without_);
  }
}

TEST_P(Factors, RangesFoundByAwqChangeTheOutputOfEachGroupLess) {
  const at::Tensor hessian = inputs().hessian;
  const int64_t group = GetParam().group_of(kInputs);
  // As if the groups' inputs were independent of each other, which is what the search looks at.
  const at::Tensor mask =
      (at::arange(kInputs).div(group, "floor").unsqueeze(0) == at::arange(kInputs).div(group, "floor").unsqueeze(1));
  const at::Tensor blocks = hessian * mask;
  const Ranges ranges = search_ranges(weight_, hessian, GetParam());
  EXPECT_LT(output_error(round_to(weight_, ranges, GetParam()).values() - weight_, blocks),
            output_error(rtn(weight_, GetParam()).values() - weight_, blocks));
}

INSTANTIATE_TEST_SUITE_P(All, Factors,
                         testing::Values(Scheme{.bits = 3, .group = 32}, Scheme{.bits = 4, .group = -1},
                                         Scheme{.bits = 4, .group = 64, .symmetric = false}));

TEST(SearchFactors, LeavesWeightsThatRoundingDoesNotChange) {
  const at::Tensor weight = normal_matrix(8, kInputs, 4).round_().clamp_(-3, 3);
  const Scheme scheme{.bits = 8, .group = 32, .symmetric = false};
  const at::Tensor exact = rtn(weight, scheme).values();
  const at::Tensor factors = search_factors(exact, inputs(), scheme, 4, untied);
  EXPECT_LE(output_error(rtn(exact * factors, scheme).values() / factors - exact, inputs().hessian),
            output_error(rtn(exact, scheme).values() - exact, inputs().hessian));
}

}  // namespace
}  // namespace fettle::quantize
