// SPDX-License-Identifier: Apache-2.0
#include "quantize/gptq.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "quantize/input_statistics.h"
#include "quantize/normal_matrix.h"

namespace fettle::quantize {
namespace {

constexpr int64_t kRows = 40;
constexpr int64_t kColumns = 256;

/// Inputs that depend on each other, of very different sizes.
at::Tensor make_hessian() {
  const at::Tensor mix = normal_matrix(kColumns, kColumns, 2);
  const at::Tensor size = at::arange(kColumns, at::kFloat).mul_(-0.02).exp_();
  InputSums sums(kColumns, at::kCPU);
  const at::Tensor x = at::mm(normal_matrix(2048, kColumns, 1), mix) * size;
  sums.add(x.narrow(0, 0, 1000));
  sums.add(x.narrow(0, 1000, 1048));
  const at::Tensor hessian = sums.mean().hessian;
  EXPECT_TRUE(at::allclose(hessian, at::mm(x.t(), x) / 2048, 1e-3, 1e-2));
  return hessian;
}

const at::Tensor& hessian() {
  static const at::Tensor made = make_hessian();
  return made;
}

class Gptq : public testing::TestWithParam<std::tuple<int, int64_t, bool, bool, bool>> {
 protected:
  [[nodiscard]] static Scheme scheme() {
    const auto [bits, group, symmetric, act_order, static_groups] = GetParam();
    return {.bits = bits, .group = group, .symmetric = symmetric, .lowest_zero = 0, .scale_type = at::kHalf};
  }
  [[nodiscard]] static GptqOptions options() {
    return {.act_order = std::get<3>(GetParam()), .static_groups = std::get<4>(GetParam())};
  }
};

double error(const at::Tensor& weight, const RoundedWeight& rounded, const at::Tensor& hessian) {
  return output_error(rounded.values() - weight, hessian);
}

TEST_P(Gptq, IsItsTwin) {
  const at::Tensor weight = normal_matrix(kRows, kColumns, 5);
  const RoundedWeight fast = gptq(weight, hessian(), scheme(), options());
  const RoundedWeight slow = composite::gptq(weight, hessian(), scheme(), options());
  // Sums in another order move a weight over the middle between two codes now and then, and all after it a little.
  EXPECT_NEAR(error(weight, fast, hessian()) / error(weight, slow, hessian()), 1.0, 0.05);
  EXPECT_GT((fast.codes == slow.codes).to(at::kFloat).mean().item<float>(), 0.95f);
  if (slow.group_of.defined()) {
    EXPECT_TRUE(at::equal(fast.group_of, slow.group_of));
  }
}

TEST_P(Gptq, ChangesTheOutputLessThanRounding) {
  const at::Tensor weight = normal_matrix(kRows, kColumns, 5);
  EXPECT_LT(error(weight, gptq(weight, hessian(), scheme(), options()), hessian()),
            0.7 * error(weight, rtn(weight, scheme()), hessian()));
}

TEST_P(Gptq, ChangesTheOutputLessWithASmallerRange) {
  if (!options().static_groups && scheme().group != -1) {
    GTEST_SKIP() << "the ranges of groups that are not static are not searched for";
  }
  const at::Tensor weight = normal_matrix(kRows, kColumns, 5);
  GptqOptions whole = options();
  whole.clip = false;
  EXPECT_LT(error(weight, gptq(weight, hessian(), scheme(), options()), hessian()),
            error(weight, gptq(weight, hessian(), scheme(), whole), hessian()));
}

TEST_P(Gptq, BlocksAndThreadsChangeNothing) {
  const at::Tensor weight = normal_matrix(kRows, kColumns, 5);
  GptqOptions whole = options();
  whole.block_size = kColumns;
  const RoundedWeight one = gptq(weight, hessian(), scheme(), whole);
  GptqOptions small = options();
  small.block_size = 50;
  EXPECT_GT((gptq(weight, hessian(), scheme(), small).codes == one.codes).to(at::kFloat).mean().item<float>(), 0.95f);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const RoundedWeight alone = gptq(weight, hessian(), scheme(), whole);
  at::set_num_threads(threads);
  EXPECT_GT((alone.codes == one.codes).to(at::kFloat).mean().item<float>(), 0.95f);
}

INSTANTIATE_TEST_SUITE_P(All, Gptq,
                         testing::Combine(testing::Values(2, 4), testing::Values(-1, 32, 128), testing::Bool(),
                                          testing::Bool(), testing::Bool()));

TEST(GptqOfIndependentInputs, IsRounding) {
  const at::Tensor weight = normal_matrix(8, 64, 5);
  const Scheme scheme{.bits = 4, .group = 32};
  EXPECT_TRUE(at::equal(gptq(weight, at::eye(64), scheme, {.clip = false}).codes, rtn(weight, scheme).codes));
}

TEST(GptqOfAnUnusedInput, GivesItZero) {
  at::Tensor hessian = at::eye(64);
  hessian[3][3] = 0;
  const RoundedWeight rounded = gptq(normal_matrix(8, 64, 5), hessian, {.bits = 4, .group = 32}, {});
  EXPECT_EQ(rounded.values().select(1, 3).abs().max().item<float>(), 0.0f);
}

TEST(GptqOfInputsThatAreNotFinite, IsRefused) {
  const at::Tensor hessian = at::full({64, 64}, NAN);
  try {
    gptq(normal_matrix(8, 64, 5), hessian, {.bits = 4}, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kDiverged);
  }
}

}  // namespace
}  // namespace fettle::quantize
