// SPDX-License-Identifier: Apache-2.0
/// The switch that forces the composites: which path a front door took shows in its result's gradient function.
#include "ops/dispatch.h"

#include <ATen/ops/randint.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/function.h>

#include <map>

#include "ops/attention.h"
#include "ops/gated.h"
#include "ops/linear_cross_entropy.h"
#include "ops/lora_linear.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "reference.h"

namespace fettle::ops {
namespace {

using testing::random;

/// The result of every front door for the same trained inputs.
std::map<std::string, at::Tensor> all_front_doors(at::ScalarType type) {
  at::manual_seed(3);
  const auto input = [type](at::IntArrayRef shape) { return random(shape).to(type).requires_grad_(true); };
  const auto constant = [type](at::IntArrayRef shape) { return random(shape).to(type); };
  const at::Tensor heads = input({6, 4, 8});
  const at::Tensor labels = at::randint(0, 11, {6}, at::kLong);
  const LoraProjection projection{constant({5, 8}), {}, input({2, 8}), input({5, 2})};
  return {{"attention", attention(heads, input({6, 2, 8}), input({6, 2, 8}), {.scale = 0.3, .window = 0}, {0, 2, 6})},
          {"swiglu", swiglu(input({6, 8}), input({6, 8}))},
          {"rms_norm", rms_norm(input({6, 8}), input({8}), 1e-5)},
          {"apply_rotary", apply_rotary(heads, constant({6, 4}), constant({6, 4}))},
          {"linear_cross_entropy", linear_cross_entropy(input({6, 8}), input({11, 8}), labels)},
          {"lora_linear", lora_linear(input({6, 8}), {projection}, {.scaling = 0.5, .dropout = 0}).front()}};
}

TEST(FusedOps, SwitchedOffEveryFrontDoorTakesItsTwin) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const auto fused = all_front_doors(type);
    const testing::WithoutFusedOps plain;
    for (const auto& [name, result] : all_front_doors(type)) {
      SCOPED_TRACE(name);
      EXPECT_THAT(fused.at(name).grad_fn()->name(), ::testing::HasSubstr("fettle::ops")) << "not Fettle's own kernel";
      EXPECT_THAT(result.grad_fn()->name(), ::testing::Not(::testing::HasSubstr("fettle::ops")));
      testing::expect_close(result.detach(), fused.at(name).detach(), testing::tolerance(type), name);
    }
  }
}

}  // namespace
}  // namespace fettle::ops
