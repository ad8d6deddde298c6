// SPDX-License-Identifier: Apache-2.0
/// rms_norm, apply_rotary and swiglu against their twins in float64. Sizes straddle vector widths and thread pieces.
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <limits>

#include "ops/gated.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "reference.h"

namespace fettle::ops {
namespace {

using testing::expect_matches_twin;
using testing::random;

TEST(RmsNorm, MatchesTwinForwardAndBackward) {
  for (const int64_t columns : {3, 7, 64, 576}) {
    for (const int64_t rows : {1, 65, 300}) {
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns));
      expect_matches_twin([](const auto& in) { return rms_norm(in[0], in[1], 1e-5); },
                          [](const auto& in) { return composite::rms_norm(in[0], in[1], 1e-5); },
                          {random({rows, columns}), random({columns})});
    }
  }
}

TEST(RmsNorm, NormalisesEveryHeadOfThreeDimensions) {
  expect_matches_twin([](const auto& in) { return rms_norm(in[0], in[1], 1e-6); },
                      [](const auto& in) { return composite::rms_norm(in[0], in[1], 1e-6); },
                      {random({5, 3, 32}), random({32})});
}

// transformers rounds the normalised value before the product with the weight: bit for bit the same in bfloat16, up to
// the order of summation in the mean, which one row of equal elements takes out.
TEST(RmsNorm, RoundsAsTransformersDoes) {
  const at::Tensor x = at::full({1, 16}, 1.7109375, at::kBFloat16);
  const at::Tensor weight = random({16}).to(at::kBFloat16);
  EXPECT_TRUE(at::equal(rms_norm(x, weight, 1e-5), composite::rms_norm(x, weight, 1e-5)));
}

TEST(RmsNorm, PropagatesNan) {
  at::Tensor x = random({2, 64}).to(at::kBFloat16);
  x[1][3] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor y = rms_norm(x, random({64}).to(at::kBFloat16), 1e-5);
  EXPECT_FALSE(y[0].isnan().any().item<bool>());
  EXPECT_TRUE(y[1].isnan().all().item<bool>());
}

TEST(RmsNorm, RefusesAWeightOfAnotherShapeOrType) {
  EXPECT_THROW(rms_norm(random({2, 8}), random({7}), 1e-5), c10::Error);
  EXPECT_THROW(rms_norm(random({2, 8}), random({8}).to(at::kFloat), 1e-5), c10::Error);
}

TEST(Rotary, MatchesTwinForwardAndBackward) {
  for (const int64_t half : {1, 4, 32}) {
    for (const int64_t rest : {0, 6}) {
      SCOPED_TRACE(std::to_string(half) + " + " + std::to_string(rest));
      const at::Tensor cos = random({70, half});
      const at::Tensor sin = random({70, half});
      const auto with = [&](auto* op) {
        return [&, op](const auto& in) { return op(in[0], cos.to(in[0].scalar_type()), sin.to(in[0].scalar_type())); };
      };
      expect_matches_twin(with(&apply_rotary), with(&composite::apply_rotary), {random({70, 3, 2 * half + rest})});
    }
  }
}

TEST(Rotary, PairsElementsHalfAHeadApart) {
  const at::Tensor x = at::tensor({1.0f, 2.0f, 3.0f, 4.0f}).view({1, 1, 4});
  const at::Tensor quarter_turn =
      apply_rotary(x, at::tensor({0.0f, 1.0f}).view({1, 2}), at::tensor({1.0f, 0.0f}).view({1, 2}));
  EXPECT_TRUE(at::equal(quarter_turn.view({4}), at::tensor({-3.0f, 2.0f, 1.0f, 4.0f})));
}

TEST(Swiglu, MatchesTwinForwardAndBackward) {
  for (const int64_t count : {1, 31, 40000}) {
    SCOPED_TRACE(count);
    expect_matches_twin([](const auto& in) { return swiglu(in[0], in[1]); },
                        [](const auto& in) { return composite::swiglu(in[0], in[1]); },
                        {random({count}) * 4, random({count})});
  }
}

TEST(Swiglu, IsFiniteWhereTheExponentialIsNot) {
  const at::Tensor gate = at::tensor({-1e30f, -200.0f, -88.0f, 88.0f, 200.0f, 1e30f});
  const at::Tensor y = swiglu(gate, at::full({6}, 1.0f));
  EXPECT_TRUE(y.isfinite().all().item<bool>());
  EXPECT_EQ(y[5].item<float>(), 1e30f);
  EXPECT_NEAR(y[1].item<float>(), 0.0f, 1e-30f);
}

}  // namespace
}  // namespace fettle::ops
