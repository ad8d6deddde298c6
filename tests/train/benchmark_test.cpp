// SPDX-License-Identifier: Apache-2.0
#include "train/benchmark.h"

#include <gtest/gtest.h>

#include "train/instances.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

TEST(Measure, TakesTheTimeOfEachToken) {
  const model::Decoder model = tiny_lora(at::kFloat);
  for (const int64_t batch : {1, 3}) {
    config::BenchmarkConfig options;
    options.benchmark_batch_size = batch;
    options.benchmark_input_tokens = 20;
    options.benchmark_output_tokens = 5;
    const Samples samples = measure(model, options, 4);
    EXPECT_EQ(samples.prefill.size(), 4u);
    EXPECT_EQ(samples.decode.size(), 16u);
    for (const double seconds : samples.prefill) EXPECT_GT(seconds, 0);
    for (const double seconds : samples.decode) EXPECT_GT(seconds, 0);
  }
}

TEST(Percentiles, AreNumpysInMilliseconds) {
  const nlohmann::ordered_json figures = percentiles({0.004, 0.001, 0.003, 0.002});
  EXPECT_DOUBLE_EQ(figures["mean"], 2.5);
  EXPECT_DOUBLE_EQ(figures["p50"], 2.5);
  EXPECT_DOUBLE_EQ(figures["p90"], 3.7);
  EXPECT_DOUBLE_EQ(figures["p99"], 3.97);
  EXPECT_DOUBLE_EQ(percentiles({0.007})["p90"], 7);
}

TEST(ShareCores, GivesEachInstanceItsOwn) {
  const std::vector<std::vector<int>> physical = {{0, 4}, {1, 5}, {2, 6}, {3, 7}};
  using Shares = std::vector<std::vector<int>>;
  EXPECT_EQ(share_cores(physical, 2, 0), (Shares{{0, 4, 1, 5}, {2, 6, 3, 7}}));
  EXPECT_EQ(share_cores(physical, 3, 1), (Shares{{0, 4}, {1, 5}, {2, 6}}));
  EXPECT_EQ(share_cores(physical, 3, 0), (Shares{{0, 4}, {1, 5}, {2, 6}}));
  EXPECT_EQ(code_of([&] { share_cores(physical, 5, 0); }), ExitCode::kConfig);
  EXPECT_EQ(code_of([&] { share_cores(physical, 2, 3); }), ExitCode::kConfig);
}

}  // namespace
}  // namespace fettle::train
