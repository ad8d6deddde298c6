// SPDX-License-Identifier: Apache-2.0
/// lora_linear and linear_cross_entropy against their twins.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include "ops/hpu/cross_entropy.h"
#include "ops/linear_cross_entropy.h"
#include "ops/lora_linear.h"
#include "reference.h"

namespace fettle::ops {
namespace {

using testing::expect_close;
using testing::expect_matches_twin;
using testing::random;
using testing::run;
using testing::tolerance;

using Projections = std::vector<LoraProjection>;
using LoraOperator = std::vector<at::Tensor>(const at::Tensor&, const Projections&, const LoraOptions&);

// x and the trained matrices are inputs; weights are constants. Projection 0 has a bias, projection 1 no LoRA.
class LoraLinear : public ::testing::Test {
 protected:
  LoraLinear() { at::manual_seed(7); }

  [[nodiscard]] testing::Operator with(LoraOperator* op, LoraOptions options) const {
    return [this, op, options](const std::vector<at::Tensor>& in) {
      const auto type = in[0].scalar_type();
      const Projections projections{{weights[0].to(type), bias.to(type), in[1], in[2]},
                                    {weights[1].to(type), {}, {}, {}},
                                    {weights[2].to(type), {}, in[3], in[4]}};
      return at::cat(op(in[0], projections, options), 1);
    };
  }

  std::vector<at::Tensor> weights{random({24, 16}), random({8, 16}), random({40, 16})};
  at::Tensor bias = random({24});
  std::vector<at::Tensor> inputs{random({50, 16}), random({4, 16}), random({24, 4}), random({4, 16}), random({40, 4})};
};

TEST_F(LoraLinear, MatchesTwinForwardAndBackward) {
  const LoraOptions options{.scaling = 0.5, .dropout = 0};
  expect_matches_twin(with(&lora_linear, options), with(&composite::lora_linear, options), inputs);
}

TEST_F(LoraLinear, DropsTheSameElementsForwardAndBackward) {
  // Without the frozen part the result is linear in x, so <y(x), g> = <x, dx(g)> holds exactly when the backward uses
  // the forward's mask.
  for (at::Tensor& weight : weights) {
    weight.zero_();
  }
  bias.zero_();
  const at::Tensor seed = random({50, 72});
  const auto results = run(with(&lora_linear, {.scaling = 2.0, .dropout = 0.4}), inputs, at::kDouble, seed);
  const double forward = (results[0] * seed).sum().item<double>();
  const double backward = (results[1] * inputs[0]).sum().item<double>();
  EXPECT_NEAR(forward, backward, 1e-9 * std::abs(forward));
  const auto plain = run(with(&lora_linear, {.scaling = 2.0, .dropout = 0}), inputs, at::kDouble, seed);
  EXPECT_FALSE(at::equal(results[0], plain[0]));
}

TEST_F(LoraLinear, DropoutKeepsTheMean) {
  const at::Tensor x = at::full({20000, 16}, 1.0);
  const Projections projections{{at::zeros({24, 16}, at::kDouble), {}, inputs[1], inputs[2]}};
  const at::Tensor dropped = lora_linear(x.to(at::kDouble), projections, {.scaling = 1, .dropout = 0.3})[0];
  const at::Tensor plain = lora_linear(x.to(at::kDouble), projections, {.scaling = 1, .dropout = 0})[0];
  expect_close(dropped.mean(0), plain.mean(0), 0.05, "mean");
}

TEST_F(LoraLinear, TrainsTheWeightToo) {
  const LoraOptions options{.scaling = 0.5, .dropout = 0};
  const auto op = [&](LoraOperator* of) {
    return [=](const std::vector<at::Tensor>& in) { return of(in[0], {{in[1], in[2], {}, {}}}, options)[0]; };
  };
  expect_matches_twin(op(&lora_linear), op(&composite::lora_linear), {inputs[0], weights[0], bias});
}

TEST_F(LoraLinear, RefusesMatricesThatDoNotFit) {
  const at::Tensor& x = inputs[0];
  EXPECT_THROW(lora_linear(x, {{weights[0], {}, inputs[1], {}}}, {}), c10::Error);
  EXPECT_THROW(lora_linear(x, {{weights[0], {}, inputs[1], inputs[4]}}, {}), c10::Error);
  EXPECT_THROW(lora_linear(x, {{weights[0], {}, {}, {}}}, {.scaling = 1, .dropout = 1.0}), c10::Error);
}

TEST(LinearCrossEntropy, MatchesTwinForwardAndBackward) {
  const at::Tensor labels = at::tensor({3, -100, 0, 36, -100, -100, 5, 5, 12, 1}, at::kLong);
  for (const int64_t chunk : {0, 1, 3, 100}) {
    SCOPED_TRACE(chunk);
    expect_matches_twin(
        [&](const auto& in) { return linear_cross_entropy(in[0], in[1], labels, chunk); },
        [&](const auto& in) { return composite::linear_cross_entropy(in[0], in[1], labels).to(in[0].scalar_type()); },
        {random({10, 16}), random({37, 16}) * 0.25});
  }
}

TEST(LinearCrossEntropy, InShapesThatDependOnNoLabelMatchesTwin) {
  const at::Tensor labels = at::tensor({3, -100, 0, 36, -100, -100, 5, 5, 12, 1}, at::kLong);
  const auto twin = [&](const auto& in) {
    return composite::linear_cross_entropy(in[0], in[1], labels).to(in[0].scalar_type());
  };
  for (const int64_t chunk : {1, 3, 10, 100}) {
    SCOPED_TRACE(chunk);
    expect_matches_twin(
        [&](const auto& in) { return hpu::linear_cross_entropy(in[0], in[1], labels, chunk).to(in[0].scalar_type()); },
        twin, {random({10, 16}), random({37, 16}) * 0.25});
  }
}

TEST(LinearCrossEntropy, LeavesRowsWithoutTargetOut) {
  const at::Tensor hidden = random({3, 8}).to(at::kFloat).requires_grad_(true);
  const at::Tensor weight = random({11, 8}).to(at::kFloat);
  const at::Tensor loss = linear_cross_entropy(hidden, weight, at::tensor({-100, 4, -100}, at::kLong));
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  loss.backward();
  EXPECT_EQ(hidden.grad()[0].abs().max().item<float>(), 0.0f);
  EXPECT_EQ(hidden.grad()[2].abs().max().item<float>(), 0.0f);
  EXPECT_GT(hidden.grad()[1].abs().max().item<float>(), 0.0f);
}

TEST(LinearCrossEntropy, WithoutTargetsIsZeroWithZeroGradient) {
  const at::Tensor hidden = random({2, 8}).to(at::kFloat).requires_grad_(true);
  const at::Tensor loss = linear_cross_entropy(hidden, random({11, 8}).to(at::kFloat), at::full({2}, -100, at::kLong));
  EXPECT_EQ(loss.item<float>(), 0.0f);
  loss.backward();
  EXPECT_EQ(hidden.grad().abs().max().item<float>(), 0.0f);
}

TEST(LinearCrossEntropy, RefusesLabelsOutsideTheVocabulary) {
  const at::Tensor hidden = random({1, 8}).to(at::kFloat);
  const at::Tensor weight = random({11, 8}).to(at::kFloat);
  EXPECT_THROW(linear_cross_entropy(hidden, weight, at::tensor({11}, at::kLong)), c10::Error);
  EXPECT_THROW(linear_cross_entropy(hidden, weight, at::tensor({-1}, at::kLong)), c10::Error);
}

TEST(LinearCrossEntropy, SurvivesLogitsThatOverflowTheExponential) {
  const at::Tensor hidden = at::full({1, 1}, 1.0f);
  const at::Tensor weight = at::tensor({-300.0f, 0.0f, 300.0f}).view({3, 1});
  EXPECT_NEAR(linear_cross_entropy(hidden, weight, at::tensor({2}, at::kLong)).item<float>(), 0.0f, 1e-6f);
  EXPECT_NEAR(linear_cross_entropy(hidden, weight, at::tensor({0}, at::kLong)).item<float>(), 600.0f, 1e-3f);
}

}  // namespace
}  // namespace fettle::ops
