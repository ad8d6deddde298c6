// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "train/progress.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

TEST(MetricsUpTo, DropsLaterStepsAndHalfALine) {
  const std::string content =
      "{\"step\":0,\"eval_loss\":2}\n{\"step\":5,\"loss\":1}\n{\"step\":5,\"eval_loss\":1}\n{\"step\":6}\n{\"step\":4";
  EXPECT_EQ(metrics_up_to(content, 5, true), content.substr(0, content.find("{\"step\":6}")));
  EXPECT_EQ(metrics_up_to(content, 5, false), "{\"step\":0,\"eval_loss\":2}\n{\"step\":5,\"loss\":1}\n")
      << "the evaluation of the step that is resumed at is done again";
  EXPECT_EQ(metrics_up_to("{\"step\":1}\nnot json\n{\"step\":2}\n", 5, true), "{\"step\":1}\n{\"step\":2}\n");
  EXPECT_EQ(metrics_up_to("", 5, true), "");
}

TEST(MetricsLog, KeepsOrReplacesAnEarlierRunsLines) {
  const TemporaryFolder folder;
  const auto file = folder.path() / "metrics.jsonl";
  for (const int64_t step : {1, 2, 3}) MetricsLog(file, true).write({{"step", step}});
  {
    MetricsLog log(file, true);
    log.drop_after(2, true);
    log.write({{"step", 3}, {"again", true}});
  }
  EXPECT_EQ(read_file(file), "{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"again\":true}\n");
  { const MetricsLog log(file, false); }
  EXPECT_EQ(read_file(file), "");
}

TEST(MetricsLog, AFolderThatIsMissingIsAnError) {
  const TemporaryFolder folder;
  EXPECT_EQ(code_of([&] { MetricsLog(folder.path() / "none" / "metrics.jsonl", false); }), ExitCode::kNoInput);
}

TEST(Evaluation, SurvivesAPerplexityThatJsonCannotHold) {
  const Evaluation evaluation{710, 3, 2};
  EXPECT_TRUE(std::isinf(evaluation.perplexity()));
  const nlohmann::json stored = nlohmann::json::parse(nlohmann::json(evaluation).dump());
  EXPECT_EQ(stored.get<Evaluation>().loss, 710);
  EXPECT_EQ(stored.get<Evaluation>().records, 2);
}

TEST(StepLine, LeavesOutWhatWasNotMeasured) {
  StepMetrics metrics;
  EXPECT_FALSE(step_line(metrics).contains("mfu"));
  metrics.mfu = 0.5;
  EXPECT_EQ(step_line(metrics)["mfu"], 0.5);
}

TEST(Progress, WritesNumbersForPeople) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(1234), "1.2k");
  EXPECT_EQ(human_count(999'600), "1.0M");
  EXPECT_EQ(human_count(123'456'789), "123M");
  EXPECT_EQ(human_duration(0.2), "1s");
  EXPECT_EQ(human_duration(185), "3m05s");
  EXPECT_EQ(human_duration(7620), "2h07m");
  EXPECT_EQ(human_duration(4 * 86400 + 3 * 3600), "4d03h");
}

TEST(Progress, NamesStepLossSpeedAndTimeLeft) {
  StepMetrics metrics;
  metrics.step = 12;
  metrics.loss = 1.5;
  metrics.tokens_per_second = 2500;
  const std::string line = progress_line(metrics, 100, 65);
  for (const char* part : {"step 12/100", "loss 1.5000", "2.5k tok/s", "ETA 1m05s"}) {
    EXPECT_THAT(line, testing::HasSubstr(part));
  }
}

}  // namespace
}  // namespace fettle::train
