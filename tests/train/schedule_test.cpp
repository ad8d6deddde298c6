// SPDX-License-Identifier: Apache-2.0
#include "train/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"

namespace fettle::train {
namespace {

nlohmann::json golden() {
  return nlohmann::json::parse(read_file(std::filesystem::path(FETTLE_SOURCE_DIR) / "tests/golden/schedules.json"));
}

void expect_same_rate(double expected, double actual) {
  EXPECT_LE(std::abs(actual - expected), 1e-12 * std::abs(expected)) << actual << " is not " << expected;
}

ScheduleOptions options_of(const nlohmann::json& file, const nlohmann::json& item) {
  return {item["type"], item["arguments"], file["learning_rate"], item.value("warmup_steps", int64_t{0}),
          file["total_steps"]};
}

ExitCode refusal_of(const ScheduleOptions& options) {
  try {
    const Schedule schedule(options);
    return ExitCode::kOk;
  } catch (const Error& error) {
    return error.code();
  }
}

TEST(Schedule, PureTypesEqualTransformers) {
  const nlohmann::json file = golden();
  ASSERT_GE(file["pure"].size(), 60u);
  for (const nlohmann::json& item : file["pure"]) {
    SCOPED_TRACE(item["type"].dump() + item["warmup_steps"].dump() + item["arguments"].dump());
    const Schedule schedule(options_of(file, item));
    EXPECT_FALSE(schedule.follows_evaluation());
    const std::vector<double> expected = item["learning_rates"];
    for (size_t step = 0; step < expected.size(); ++step) {
      expect_same_rate(expected[step], schedule.learning_rate(static_cast<int64_t>(step)));
    }
  }
}

TEST(Schedule, AdaptiveTypesEqualTorchAndTransformers) {
  const nlohmann::json file = golden();
  const std::vector<double> metrics = file["metrics"];
  for (const nlohmann::json& item : file["adaptive"]) {
    SCOPED_TRACE(item["type"].dump() + item["arguments"].dump());
    Schedule schedule(options_of(file, item));
    EXPECT_TRUE(schedule.follows_evaluation());
    const std::vector<double> expected = item["learning_rates"];
    for (size_t i = 0; i < metrics.size(); ++i) {
      schedule.observe(metrics[i]);
      expect_same_rate(expected[i], schedule.learning_rate(static_cast<int64_t>(i)));
    }
  }
}

TEST(Schedule, AdaptiveStateContinuesAsIfNothingHappened) {
  const nlohmann::json file = golden();
  const std::vector<double> metrics = file["metrics"];
  for (const nlohmann::json& item : file["adaptive"]) {
    Schedule whole(options_of(file, item));
    Schedule first(options_of(file, item));
    Schedule second(options_of(file, item));
    second.restore(nlohmann::json::parse(second.state().dump()));  // a state before any evaluation has no best metric
    for (size_t i = 0; i < metrics.size(); ++i) {
      whole.observe(metrics[i]);
      if (i == 20) second.restore(nlohmann::json::parse(first.state().dump()));
      Schedule& current = i < 20 ? first : second;
      current.observe(metrics[i]);
      EXPECT_EQ(current.learning_rate(0), whole.learning_rate(0)) << item["type"] << " after " << i;
    }
  }
}

TEST(Schedule, PureStateIsNull) {
  EXPECT_TRUE(Schedule({"linear", {}, 1e-3, 0, 10}).state().is_null());
}

TEST(Schedule, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(refusal_of({"lineal", {}, 1e-3, 0, 10}), ExitCode::kUsage);
  EXPECT_EQ(refusal_of({"linear", {{"num_cycles", 2}}, 1e-3, 0, 10}), ExitCode::kUsage);
  EXPECT_EQ(refusal_of({"cosine", {{"num_cycles", "two"}}, 1e-3, 0, 10}), ExitCode::kUsage);
  EXPECT_EQ(refusal_of({"cosine", nlohmann::json::array({1}), 1e-3, 0, 10}), ExitCode::kUsage);
  EXPECT_EQ(refusal_of({"warmup_stable_decay", {}, 1e-3, 0, 10}), ExitCode::kUsage);
  EXPECT_EQ(refusal_of({"warmup_stable_decay", {{"num_decay_steps", 2}, {"decay_type", "cube"}}, 1e-3, 0, 10}),
            ExitCode::kUsage);
  EXPECT_EQ(refusal_of({"inverse_sqrt", {{"timescale", 0}}, 1e-3, 0, 10}), ExitCode::kUsage);
  EXPECT_EQ(refusal_of({"reduce_lr_on_plateau", {{"factor", 1.0}}, 1e-3, 0, 10}), ExitCode::kUsage);
  EXPECT_EQ(refusal_of({"greedy", {{"patience", 1.5}}, 1e-3, 0, 10}), ExitCode::kUsage);
}

TEST(Schedule, RefusesContradictions) {
  EXPECT_EQ(refusal_of({"cosine_with_min_lr", {}, 1e-3, 0, 10}), ExitCode::kConfig);
  EXPECT_EQ(refusal_of({"cosine_with_min_lr", {{"min_lr", 1e-4}, {"min_lr_rate", 0.1}}, 1e-3, 0, 10}),
            ExitCode::kConfig);
  EXPECT_EQ(refusal_of({"polynomial", {{"lr_end", 1e-2}}, 1e-3, 0, 10}), ExitCode::kConfig);
}

TEST(Schedule, UnknownArgumentIsNamedWithTheKnownOnes) {
  try {
    const Schedule schedule({"cosine", {{"cycles", 2}}, 1e-3, 0, 10});
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("'cycles'"));
    EXPECT_THAT(error.hint(), testing::HasSubstr("num_cycles"));
  }
}

TEST(Schedule, FromConfigReadsJsonAndChecksTheEvaluation) {
  config::TrainingConfig options;
  options.lr_scheduler_kwargs = R"({"num_cycles": 1.0})";
  options.warmup_ratio = 0;
  const Schedule schedule = Schedule::from_config(options, 1.0, 10);
  EXPECT_NEAR(schedule.learning_rate(5), 0.0, 1e-15);
  options.lr_scheduler_kwargs = "{num_cycles";
  EXPECT_THROW(Schedule::from_config(options, 1.0, 10), Error);
  options.lr_scheduler_kwargs.clear();
  options.lr_scheduler_type = "reduce_lr_on_plateau";
  EXPECT_THROW(Schedule::from_config(options, 1.0, 10), Error);
  options.eval_strategy = "epoch";
  EXPECT_EQ(Schedule::from_config(options, 0.5, 10).learning_rate(3), 0.5);
}

TEST(WarmupSteps, CountsAsTransformers) {
  config::TrainingConfig options;
  options.warmup_ratio = 0.03;
  EXPECT_EQ(warmup_steps(options, 100), 3);
  EXPECT_EQ(warmup_steps(options, 101), 4);
  options.warmup_steps = 7;
  EXPECT_EQ(warmup_steps(options, 101), 7);
  options.warmup_steps = 0.5;
  EXPECT_EQ(warmup_steps(options, 101), 51);
}

}  // namespace
}  // namespace fettle::train
