// SPDX-License-Identifier: Apache-2.0
/// A weight that is in few bits from the start.
#include "model/parameter.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "model/linear.h"

namespace fettle::model {
namespace {

ops::GroupedWeight random_weight() {
  return ops::pack({.bits = 4,
                    .group = 32,
                    .codes = at::randint(16, {24, 64}, at::kByte),
                    .scales = at::rand({24, 2}, at::kFloat),
                    .zeros = at::randint(16, {24, 2}, at::kByte),
                    .group_of = {}});
}

TEST(GroupedParameter, IsAFrozenMatrixWithoutAValue) {
  const ops::GroupedWeight weight = random_weight();
  Parameter parameter = Parameter::grouped("model.layers.0.mlp.up_proj.weight", weight, at::kBFloat16);
  EXPECT_EQ(parameter.name(), "model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(parameter.stored().sizes(), (std::vector<int64_t>{24, 64}));
  EXPECT_EQ(parameter.stored().scalar_type(), at::kBFloat16);
  EXPECT_EQ(parameter.stored().storage().nbytes(), 2U);
  EXPECT_TRUE(parameter.is_quantized());
  EXPECT_FALSE(parameter.is_trained());
  EXPECT_TRUE(std::get<ops::GroupedWeight>(parameter.weight()).codes.is_same(weight.codes));
  EXPECT_THROW(parameter.quantize(ops::WeightFormat::kInt8), c10::Error);
  parameter.move_to(at::kMeta);
  EXPECT_TRUE(std::get<ops::GroupedWeight>(parameter.weight()).codes.is_meta());
  EXPECT_TRUE(parameter.stored().is_meta());
}

TEST(GroupedParameter, IsTrainedInFull) {
  Parameter parameter = Parameter::grouped("w", random_weight(), at::kFloat);
  const at::Tensor start = at::randn({24, 64});
  parameter.train(start);
  EXPECT_FALSE(parameter.is_quantized());
  EXPECT_TRUE(at::equal(std::get<at::Tensor>(parameter.weight()).detach(), start));
}

TEST(GroupedParameter, Projects) {
  const ops::GroupedWeight weight = random_weight();
  const at::Tensor bias = at::randn({24}).to(at::kBFloat16);
  const Linear layer{.name = "up_proj",
                     .weight = Parameter::grouped("up_proj.weight", weight, at::kBFloat16),
                     .bias = Parameter("up_proj.bias", bias),
                     .lora = {}};
  const at::Tensor x = at::randn({3, 64}).to(at::kBFloat16);
  EXPECT_TRUE(at::equal(project(x, {&layer}, {})[0], ops::grouped_linear(x, weight, bias)));
}

}  // namespace
}  // namespace fettle::model
