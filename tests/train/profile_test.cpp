// SPDX-License-Identifier: Apache-2.0
#include "train/profile.h"

#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "ops/gated.h"
#include "ops/rms_norm.h"
#include "support/temporary_folder.h"

namespace fettle::train {
namespace {

using testing::ElementsAre;
using testing::Field;

testing::Matcher<PartTime> part(const std::string& name, double forward, double backward) {
  return testing::AllOf(Field(&PartTime::part, name), Field(&PartTime::forward, testing::DoubleNear(forward, 1e-12)),
                        Field(&PartTime::backward, testing::DoubleNear(backward, 1e-12)));
}

TEST(TakeApart, AnEventsTimeIsWhatThoseWithinItLeave) {
  const std::vector<TimedEvent> events{
      {.name = "aten::mm", .begin = 20, .end = 50, .id = 3},
      {.name = "fettle::lora_linear", .begin = 10, .end = 60, .id = 1},
      {.name = "aten::add", .begin = 70, .end = 75, .id = 4},
      {.name = "aten::empty", .begin = 10, .end = 15, .id = 2},
  };
  const StepProfile profile = take_apart(events, 100e-9);
  EXPECT_THAT(profile.parts, ElementsAre(part("linear layers", 50e-9, 0), part("other", 5e-9, 0)));
  EXPECT_DOUBLE_EQ(profile.matrix_products, 30e-9);
  EXPECT_NEAR(profile.idle, 45e-9, 1e-15);
}

TEST(TakeApart, WhatAutogradRunsIsBackward) {
  const std::vector<TimedEvent> events{
      {.name = "autograd::engine::evaluate_function: CppNode<fettle::ops::RmsNorm>", .begin = 0, .end = 40, .id = 1},
      {.name = "CppNode<fettle::ops::RmsNorm>", .begin = 5, .end = 35, .id = 2},
      {.name = "aten::empty", .begin = 10, .end = 12, .id = 3},
      {.name = "fettle::swiglu", .begin = 0, .end = 10, .thread = 7, .id = 4},
  };
  EXPECT_THAT(take_apart(events, 1e-6).parts, ElementsAre(part("norms", 0, 40e-9), part("activation", 10e-9, 0)));
}

TEST(TakeApart, OnAGpuOnlyItsOwnTimeCounts) {
  const std::vector<TimedEvent> events{
      {.name = "fettle::attention", .begin = 0, .end = 500, .id = 1},
      {.name = "aten::mm", .begin = 600, .end = 900, .id = 2},
      {.name = "flash_kernel", .begin = 700, .end = 710, .id = 9, .caused_by = 1, .on_gpu = true},
      {.name = "gemm_kernel", .begin = 710, .end = 740, .id = 9, .caused_by = 2, .on_gpu = true},
      {.name = "memcpy", .begin = 740, .end = 742, .id = 9, .caused_by = 0, .on_gpu = true},
  };
  const StepProfile profile = take_apart(events, 1e-6);
  EXPECT_THAT(profile.parts, ElementsAre(part("other", 32e-9, 0), part("attention", 10e-9, 0)));
  EXPECT_DOUBLE_EQ(profile.matrix_products, 30e-9);
}

/// Calls of the driver have numbers of their own, which may be an operator's.
TEST(TakeApart, WhatIsNoOperatorCausesNothing) {
  const std::vector<TimedEvent> events{
      {.name = "fettle::swiglu", .begin = 0, .end = 9, .thread = 1, .id = 0},
      {.name = "fettle::rotary", .begin = 0, .end = 9, .thread = 2, .id = 5},
      {.name = "kernel", .begin = 3, .end = 5, .caused_by = 5, .on_gpu = true},
      {.name = "memset", .begin = 5, .end = 6, .caused_by = 0, .on_gpu = true},
  };
  EXPECT_THAT(take_apart(events, 1e-6).parts, ElementsAre(part("rotary", 2e-9, 0), part("other", 1e-9, 0)));
}

TEST(TakeApart, WithoutFusedOperatorsTheHeadStaysTheHead) {
  const std::vector<TimedEvent> events{
      {.name = "fettle::linear_cross_entropy", .begin = 0, .end = 30, .id = 1},
      {.name = "aten::linear", .begin = 10, .end = 20, .id = 2},
      {.name = "fettle::attention", .begin = 40, .end = 50, .id = 3},
      {.name = "aten::bmm", .begin = 40, .end = 50, .id = 4},
  };
  const StepProfile profile = take_apart(events, 1e-6);
  EXPECT_THAT(profile.parts, ElementsAre(part("head and loss", 30e-9, 0), part("attention", 10e-9, 0)));
  EXPECT_DOUBLE_EQ(profile.matrix_products, 10e-9);
}

TEST(TakeApart, NothingIsAllIdle) {
  EXPECT_EQ(take_apart({}, 2).idle, 2);
}

/// Torch's profiler sees the front doors, forward and backward.
TEST(Profiler, WritesTheStepsAfterTheWarmUp) {
  const TemporaryFolder folder;
  Profiler profiler(folder.path(), 2, at::kCPU);
  for (int64_t step = 0; step < Profiler::kWarmUpSteps + 4; ++step) {
    profiler.step_begins();
    const at::Tensor x = at::ones({64, 64}).requires_grad_();
    at::mm(ops::rms_norm(x, at::ones({64}), 1e-5), at::ones({64, 64})).sum().backward();
    profiler.step_ended(10);
    ops::swiglu(x.detach(), x.detach());  // between two steps
  }
  const auto profile = nlohmann::json::parse(read_file(folder.path() / "profile.json"));
  EXPECT_EQ(profile["steps"], 2);
  EXPECT_EQ(profile["tokens"], 20);
  EXPECT_GT(profile["matrix_products"], 0);
  double sum = profile["idle"];
  bool has_norm = false;
  for (const auto& part : profile["parts"]) {
    sum += part["forward"].get<double>() + part["backward"].get<double>();
    if (part["part"] == "norms") has_norm = part["forward"] > 0 && part["backward"] > 0;
    EXPECT_NE(part["part"], "activation");
  }
  EXPECT_TRUE(has_norm) << profile;
  EXPECT_NEAR(sum, profile["seconds"], 1e-9);
  EXPECT_TRUE(nlohmann::json::parse(read_file(folder.path() / "trace.json")).contains("traceEvents"));
}

TEST(Profiler, ThatCannotWriteLetsTheRunGoOn) {
  Profiler profiler("/proc/none", 1, at::kCPU);
  for (int64_t step = 0; step < Profiler::kWarmUpSteps + 2; ++step) {
    profiler.step_begins();
    profiler.step_ended(1);
  }
  EXPECT_FALSE(std::filesystem::exists("/proc/none"));
}

TEST(Profiler, MayEndWithinAStep) {
  const TemporaryFolder folder;
  {
    Profiler profiler(folder.path(), 1, at::kCPU);
    for (int64_t step = 0; step < Profiler::kWarmUpSteps; ++step) {
      profiler.step_begins();
      profiler.step_ended(1);
    }
    profiler.step_begins();
  }
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "profile.json"));
  Profiler next(folder.path(), 1, at::kCPU);  // another may begin
  for (int64_t step = 0; step <= Profiler::kWarmUpSteps; ++step) {
    next.step_begins();
    next.step_ended(1);
  }
  EXPECT_TRUE(std::filesystem::exists(folder.path() / "profile.json"));
}

}  // namespace
}  // namespace fettle::train
