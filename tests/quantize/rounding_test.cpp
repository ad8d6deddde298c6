// SPDX-License-Identifier: Apache-2.0
#include "quantize/rounding.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "quantize/normal_matrix.h"

namespace fettle::quantize {
namespace {

TEST(Rtn, RoundsSymmetricallyToTheNearest) {
  const at::Tensor weight = at::tensor({-7.5f, -1.0f, 0.4f, 7.5f}, at::kFloat).view({1, 4});
  const RoundedWeight rounded = rtn(weight, {.bits = 4});
  EXPECT_FLOAT_EQ(rounded.ranges.scales.item<float>(), 1.0f);  // 2·7.5/15
  EXPECT_FLOAT_EQ(rounded.ranges.zeros.item<float>(), 8.0f);
  // -7.5 is halfway: to even; 7.5 would be 8, which the highest code, 15 - 8, cuts off.
  EXPECT_TRUE(at::equal(rounded.values(), at::tensor({-8.0f, -1.0f, 0.0f, 7.0f}, at::kFloat).view({1, 4})));
}

TEST(Rtn, RoundsWithAZeroPointIntoTheRange) {
  const at::Tensor weight = at::tensor({0.0f, 1.0f, 2.0f, 3.0f, -1.0f, 0.0f, 1.0f, 2.0f}, at::kFloat).view({1, 8});
  const RoundedWeight rounded = rtn(weight, {.bits = 2, .group = 4, .symmetric = false});
  EXPECT_TRUE(at::equal(rounded.ranges.zeros, at::tensor({0.0f, 1.0f}, at::kFloat).view({1, 2})));
  EXPECT_TRUE(at::equal(rounded.values(), weight));
}

class Schemes : public testing::TestWithParam<std::tuple<int, int64_t, bool, at::ScalarType>> {
 protected:
  [[nodiscard]] static Scheme scheme() {
    const auto [bits, group, symmetric, type] = GetParam();
    return {.bits = bits, .group = group, .symmetric = symmetric, .lowest_zero = 0, .scale_type = type};
  }
};

TEST_P(Schemes, NoWeightMovesByMoreThanItsStep) {
  const at::Tensor weight = normal_matrix(33, 128, 7);
  const RoundedWeight rounded = rtn(weight, scheme());
  const at::Tensor scales = rounded.ranges.scales;
  EXPECT_TRUE(at::equal(scales.to(scheme().scale_type).to(at::kFloat), scales));
  const at::Tensor moved = (rounded.values() - weight).abs().view({33, scales.size(1), -1});
  // Half a step inside the range; a whole one at its upper end, and where a stored scale is smaller than it should be.
  EXPECT_TRUE((moved <= scales.unsqueeze(-1) * 1.51).all().item<bool>());
  EXPECT_LE(rounded.codes.max().item<int64_t>(), scheme().largest_code());
}

TEST_P(Schemes, AGroupOfZerosStaysZero) {
  const RoundedWeight rounded = rtn(at::zeros({3, 128}), scheme());
  EXPECT_TRUE(at::equal(rounded.values(), at::zeros({3, 128})));
}

INSTANTIATE_TEST_SUITE_P(All, Schemes,
                         testing::Combine(testing::Values(2, 3, 4, 5, 8), testing::Values(-1, 32, 128), testing::Bool(),
                                          testing::Values(at::kFloat, at::kHalf, at::kBFloat16)));

TEST(ToMatrix, HoldsTheSameValues) {
  const at::Tensor weight = normal_matrix(5, 64, 3);
  for (const bool symmetric : {true, false}) {
    const Scheme scheme{.bits = 3, .group = 32, .symmetric = symmetric};
    const RoundedWeight rounded = rtn(weight, scheme);
    const hub::QuantizedMatrix matrix = to_matrix(rounded, scheme);
    ASSERT_EQ(matrix.zeros.empty(), symmetric);
    const at::Tensor values = rounded.values();
    for (int64_t o = 0; o < 5; ++o) {
      for (int64_t c = 0; c < 64; ++c) {
        const auto group = static_cast<size_t>(o * 2 + c / 32);
        const int zero = symmetric ? 4 : matrix.zeros[group];
        const float value =
            static_cast<float>(matrix.codes[static_cast<size_t>(o * 64 + c)] - zero) * matrix.scales[group];
        EXPECT_EQ(value, values[o][c].item<float>());
      }
    }
  }
}

}  // namespace
}  // namespace fettle::quantize
