// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/file.h"

namespace fettle::train {
namespace {

at::Tensor from_json(const nlohmann::json& values, const nlohmann::json& shape) {
  return at::tensor(values.get<std::vector<float>>(), at::kFloat).reshape(shape.get<std::vector<int64_t>>());
}

std::vector<model::NamedTensor> leaves(const nlohmann::json& golden) {
  std::vector<model::NamedTensor> parameters;
  for (size_t i = 0; i < golden["names"].size(); ++i) {
    parameters.push_back(
        {golden["names"][i], from_json(golden["initial"][i], golden["shapes"][i]).requires_grad_(true)});
  }
  return parameters;
}

config::TrainingConfig options_of(const nlohmann::json& golden) {
  config::TrainingConfig options;
  options.adam_beta1 = golden["betas"][0];
  options.adam_beta2 = golden["betas"][1];
  options.adam_epsilon = golden["epsilon"];
  options.weight_decay = golden["weight_decay"];
  return options;
}

TEST(AdamW, TrajectoryWithClippingAndDecayGroupsEqualsTorch) {
  const nlohmann::json golden =
      nlohmann::json::parse(read_file(std::filesystem::path(FETTLE_SOURCE_DIR) / "tests/golden/optimizer.json"));
  const auto parameters = leaves(golden);
  AdamW optimizer(parameters, options_of(golden));
  for (const nlohmann::json& step : golden["steps"]) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      parameters[i].tensor.mutable_grad() = from_json(step["gradients"][i], golden["shapes"][i]);
    }
    EXPECT_NEAR(clip_gradients(parameters, gradient_norm(parameters), golden["max_norm"]), step["norm"].get<double>(),
                1e-6 * step["norm"].get<double>());
    optimizer.step(step["learning_rate"]);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const at::Tensor expected = from_json(step["parameters"][i], golden["shapes"][i]);
      EXPECT_LE(parameters[i].tensor.sub(expected).abs().max().item<double>(), 1e-6) << parameters[i].name;
    }
  }
}

/// The update of the paper (Loshchilov and Hutter, algorithm 2) for one number, in double.
struct PlainAdamW {
  double mean = 0;
  double squared_mean = 0;
  int64_t steps = 0;

  double update(double weight, double gradient, double rate, const config::TrainingConfig& options) {
    ++steps;
    weight -= rate * options.weight_decay * weight;
    mean = options.adam_beta1 * mean + (1 - options.adam_beta1) * gradient;
    squared_mean = options.adam_beta2 * squared_mean + (1 - options.adam_beta2) * gradient * gradient;
    const double corrected_mean = mean / (1 - std::pow(options.adam_beta1, steps));
    const double corrected_squared = squared_mean / (1 - std::pow(options.adam_beta2, steps));
    return weight - rate * corrected_mean / (std::sqrt(corrected_squared) + options.adam_epsilon);
  }
};

TEST(AdamW, EqualsThePlainTwin) {
  config::TrainingConfig options;
  options.weight_decay = 0.05;
  const std::vector<model::NamedTensor> parameters = {
      {"w.weight", at::full({1}, 0.7, at::kFloat).requires_grad_(true)}};
  AdamW optimizer(parameters, options);
  PlainAdamW twin;
  double weight = parameters[0].tensor.item<float>();
  for (int step = 0; step < 50; ++step) {
    const float gradient = std::sin(static_cast<float>(step)) * 0.3F;
    parameters[0].tensor.mutable_grad() = at::full({1}, gradient, at::kFloat);
    optimizer.step(1e-2);
    weight = twin.update(weight, gradient, 1e-2, options);
    EXPECT_NEAR(parameters[0].tensor.item<double>(), weight, 2e-6) << step;
  }
}

TEST(AdamW, LeavesAParameterWithoutGradientAlone) {
  const std::vector<model::NamedTensor> parameters = {
      {"a.weight", at::full({2}, 1.0, at::kFloat).requires_grad_(true)},
      {"b.weight", at::full({2}, 1.0, at::kFloat).requires_grad_(true)}};
  config::TrainingConfig options;
  options.weight_decay = 0.5;
  AdamW optimizer(parameters, options);
  parameters[0].tensor.mutable_grad() = at::full({2}, 0.1, at::kFloat);
  optimizer.step(0.1);
  EXPECT_LT(parameters[0].tensor[0].item<double>(), 1.0);
  EXPECT_EQ(parameters[1].tensor[0].item<double>(), 1.0);
  clear_gradients(parameters);
  EXPECT_FALSE(parameters[0].tensor.grad().defined());
}

TEST(AdamW, StateRestoredIntoAFreshOptimizerContinuesBitForBit) {
  const auto make = [] {
    return std::vector<model::NamedTensor>{{"a.weight", at::full({3}, 1.0, at::kFloat).requires_grad_(true)}};
  };
  const config::TrainingConfig options;
  const auto whole = make();
  const auto resumed = make();
  AdamW first(whole, options);
  const auto run = [](AdamW& optimizer, const std::vector<model::NamedTensor>& parameters, int begin, int end) {
    for (int i = begin; i < end; ++i) {
      parameters[0].tensor.mutable_grad() = at::full({3}, 0.1 * (i + 1), at::kFloat);
      optimizer.step(0.01);
    }
  };
  run(first, whole, 0, 3);
  AdamW second(resumed, options);
  resumed[0].tensor.data().copy_(whole[0].tensor.data());
  const auto source = first.state();
  const auto target = second.state();
  ASSERT_EQ(source.size(), target.size());
  for (size_t i = 0; i < source.size(); ++i) {
    ASSERT_EQ(source[i].name, target[i].name);
    target[i].tensor.copy_(source[i].tensor);
  }
  run(first, whole, 3, 6);
  run(second, resumed, 3, 6);
  EXPECT_TRUE(at::equal(whole[0].tensor, resumed[0].tensor));
}

TEST(ClipGradients, ZeroOnlyMeasuresAndNonFiniteShows) {
  const std::vector<model::NamedTensor> parameters = {{"a", at::zeros({2}).requires_grad_(true)},
                                                      {"b", at::zeros({1}).requires_grad_(true)}};
  EXPECT_EQ(clip_gradients(parameters, gradient_norm(parameters), 1.0), 0.0);
  parameters[0].tensor.mutable_grad() = at::full({2}, 4.0, at::kFloat);
  parameters[1].tensor.mutable_grad() = at::full({1}, 2.0, at::kFloat);
  EXPECT_NEAR(clip_gradients(parameters, gradient_norm(parameters), 0), 6.0, 1e-6);
  EXPECT_EQ(parameters[1].tensor.grad().item<double>(), 2.0);
  EXPECT_NEAR(clip_gradients(parameters, gradient_norm(parameters), 3.0), 6.0, 1e-6);
  EXPECT_NEAR(parameters[1].tensor.grad().item<double>(), 1.0, 1e-6);
  parameters[1].tensor.mutable_grad().fill_(std::numeric_limits<float>::infinity());
  EXPECT_FALSE(std::isfinite(clip_gradients(parameters, gradient_norm(parameters), 1.0)));
}

TEST(Decays, FollowsTransformersRule) {
  EXPECT_TRUE(decays("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_TRUE(decays("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"));
  EXPECT_TRUE(decays("model.embed_tokens.weight"));
  EXPECT_TRUE(decays("model.normal.weight"));
  EXPECT_FALSE(decays("model.layers.0.self_attn.q_proj.bias"));
  EXPECT_FALSE(decays("model.layers.0.input_layernorm.weight"));
  EXPECT_FALSE(decays("model.layers.0.self_attn.q_norm.weight"));
  EXPECT_FALSE(decays("model.norm.weight"));
}

}  // namespace
}  // namespace fettle::train
