// SPDX-License-Identifier: Apache-2.0
/// zero_stage 1 to 3: whole runs of several processes against stage 0.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "train/shards.h"
#include "train/zero_runs.h"

namespace fettle::train {
namespace {

namespace fs = std::filesystem;

TEST(ShareOut, CutsIntoRunsOfAboutEqualBytes) {
  EXPECT_THAT(share_out({4, 4, 4, 4}, 2), testing::ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(share_out({9, 1, 1, 1}, 2), testing::ElementsAre(0, 1, 1, 1));
  EXPECT_THAT(share_out({1}, 4), testing::ElementsAre(2));
  EXPECT_THAT(share_out({0, 0}, 2), testing::ElementsAre(0, 0));
  EXPECT_THAT(share_out({}, 3), testing::IsEmpty());
}

TEST(ShareOut, GivesNoPartMuchMoreThanItsShare) {
  std::mt19937 random(3);
  for (int tries = 0; tries < 200; ++tries) {
    std::vector<int64_t> bytes(1 + random() % 40);
    for (int64_t& each : bytes) each = static_cast<int64_t>(random() % 1000);
    const auto parts = static_cast<int64_t>(1 + random() % 8);
    const std::vector<int64_t> owners = share_out(bytes, parts);
    EXPECT_TRUE(std::ranges::is_sorted(owners));
    const int64_t sum = std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
    for (int64_t part = 0; part < parts; ++part) {
      int64_t own = 0;
      for (size_t i = 0; i < bytes.size(); ++i) own += owners[i] == part ? bytes[i] : 0;
      EXPECT_LE(own, sum / parts + 1 + *std::ranges::max_element(bytes));
    }
    EXPECT_GE(owners.front(), 0);
    EXPECT_LT(owners.back(), parts);
  }
}

/// How a run is trained.
struct Case {
  std::string name;
  int64_t world_size;
  Options options;
  /// Of weights and optimizer state, of stages 2 and 3: sums in another order. 0: bit for bit.
  double tolerance;
};

/// float32: as tests/faults/ranks_equality_test.py has it. bfloat16: where a sum of gradients is rounded otherwise, a
/// weight near the middle between two bfloat16 numbers is the other one in the next step, a difference of 2^-8 of it;
/// one such weight in sixteen is 1e-3 of their norm.
constexpr double kFloatRounding = 1e-5;
constexpr double kBfloatRounding = 1e-3;

const Options kLora = {"--lora_dropout=0.1", "--lora_r=4", "--learning_rate=1e-3"};
/// In bfloat16 a larger step would carry such a weight on to the loss, and from there into every gradient.
const Options kSlowLora = {"--lora_dropout=0.1", "--lora_r=4", "--learning_rate=1e-4"};
const Options kFull = {"--use_peft=false", "--learning_rate=1e-4"};

Options operator+(Options options, const Options& more) {
  options.insert(options.end(), more.begin(), more.end());
  return options;
}

std::vector<Case> cases() {
  const Options full_precision = {"--bf16=false"};
  const Options half_precision = {"--bf16=true"};
  const Options twice = {"--gradient_accumulation_steps=2", "--num_train_epochs=2"};
  const Options twice_long = {"--gradient_accumulation_steps=2", "--num_train_epochs=4"};
  const Options exact = {"--max_grad_norm=0", "--num_train_epochs=2"};  // a + b = b + a, and no norm of rounded parts
  return {{"LoraFloat2", 2, kLora + full_precision + twice, kFloatRounding},
          {"LoraFloat4", 4, kLora + full_precision + twice_long, kFloatRounding},
          {"LoraBfloat4", 4, kSlowLora + half_precision + twice, kBfloatRounding},
          {"LoraBfloat2Exact", 2, kLora + half_precision + exact, 0},
          {"FullFloat2", 2, kFull + full_precision + twice, kFloatRounding},
          {"FullFloat4", 4, kFull + full_precision + twice_long, kFloatRounding},
          {"FullFloat2Exact", 2, kFull + full_precision + exact + Options{"--max_shard_size=300KB"}, 0},
          {"FullBfloat4", 4, kFull + half_precision + twice_long, kBfloatRounding},
          {"FullBfloat2Exact", 2, kFull + half_precision + exact, 0}};
}

class Zero : public testing::TestWithParam<Case> {};

/// The state of the newest checkpoint and the evaluations; where the tolerance is 0 also the bytes of the result.
void expect_same(const fs::path& output, const fs::path& plain, double tolerance, const std::string& what) {
  const fs::path actual = newest_checkpoint(output);
  const fs::path expected = newest_checkpoint(plain);
  EXPECT_EQ(actual.filename(), expected.filename());
  const double weights = distance(weights_in(actual), weights_in(expected));
  const double state = distance(actual / kOptimizerFile, expected / kOptimizerFile);
  double evaluations = 0;
  for (const char* name : {"eval_loss_before", "eval_loss"}) {
    const double loss = results_of(plain).at(name);
    evaluations = std::max(evaluations, std::abs(results_of(output).at(name).get<double>() - loss) / loss);
  }
  fmt::print("{}: weights {:.1e}, optimizer {:.1e}, evaluations {:.1e}\n", what, weights, state, evaluations);
  EXPECT_LE(weights, tolerance);
  EXPECT_LE(state, tolerance);
  EXPECT_LE(evaluations, tolerance);
  if (tolerance > 0) return;
  EXPECT_TRUE(files_ending_in(actual, ".safetensors") == files_ending_in(expected, ".safetensors"));
  EXPECT_TRUE(files_ending_in(output, ".safetensors") == files_ending_in(plain, ".safetensors"));
  EXPECT_TRUE(files_ending_in(output, ".index.json") == files_ending_in(plain, ".index.json"));
}

TEST_P(Zero, EveryStageTrainsTheSameModel) {
  const TemporaryFolder folder;
  const std::string texts = write_texts(folder.path());
  const Case& run = GetParam();
  const fs::path plain = folder.path() / "0";
  const Options options = run.options + Options{"--validation_file=" + texts, "--eval_steps=2", "--eval_strategy=steps",
                                                "--per_device_eval_batch_size=3"};
  train_ranks(run.world_size, training(texts, plain, options));
  for (int stage = 1; stage <= 3; ++stage) {
    SCOPED_TRACE(stage);
    const fs::path output = folder.path() / std::to_string(stage);
    const std::string log =
        train_ranks(run.world_size, training(texts, output, options + Options{fmt::format("--zero_stage={}", stage)}));
    EXPECT_THAT(log, testing::HasSubstr("verified: the result read back from disk"));
    expect_same(output, plain, stage == 1 ? 0 : run.tolerance, fmt::format("{} stage {}", run.name, stage));
  }
}

INSTANTIATE_TEST_SUITE_P(Runs, Zero, testing::ValuesIn(cases()), [](const auto& info) { return info.param.name; });

class ZeroResume : public testing::TestWithParam<Options> {};

TEST_P(ZeroResume, AtAnotherStageAndNumberOfRanks) {
  const TemporaryFolder folder;
  const std::string texts = write_texts(folder.path());
  const Options options =
      GetParam() + Options{"--bf16=false", "--num_train_epochs=2", "--save_steps=2", "--save_total_limit=0"};
  const fs::path whole = folder.path() / "whole";
  train_ranks(4, training(texts, whole, options));
  const fs::path expected = newest_checkpoint(whole);
  const struct {
    int64_t begun_by;
    int begun_at;
    int64_t resumed_by;
    int resumed_at;
  } changes[] = {{4, 0, 2, 2}, {4, 1, 4, 1}, {4, 2, 1, 0}, {4, 2, 3, 3}, {4, 3, 2, 0}};
  for (const auto& change : changes) {
    const std::string name =
        fmt::format("{}-at-{}-then-{}-at-{}", change.begun_by, change.begun_at, change.resumed_by, change.resumed_at);
    SCOPED_TRACE(name);
    const fs::path output = folder.path() / name;
    const auto at_stage = [&](int stage) {
      return training(texts, output, options + Options{fmt::format("--zero_stage={}", stage)});
    };
    train_ranks(change.begun_by, at_stage(change.begun_at));
    for (const fs::path& checkpoint : list_checkpoints(output)) {
      if (checkpoint.filename() != "checkpoint-2") fs::remove_all(checkpoint);
    }
    fs::remove(weights_in(output));
    const std::string log = train_ranks(change.resumed_by, at_stage(change.resumed_at));
    EXPECT_THAT(log, testing::HasSubstr("resuming from"));
    const fs::path actual = newest_checkpoint(output);
    EXPECT_EQ(actual.filename(), expected.filename());
    const double tolerance =
        change.resumed_by == 4 && change.resumed_at < 2 && change.begun_at < 2 ? 0 : kFloatRounding;
    EXPECT_LE(distance(weights_in(actual), weights_in(expected)), tolerance);
    EXPECT_LE(distance(actual / kOptimizerFile, expected / kOptimizerFile), tolerance);
  }
}
INSTANTIATE_TEST_SUITE_P(Runs, ZeroResume, testing::Values(kLora, kFull),
                         [](const auto& info) { return info.index == 0 ? "Lora" : "Full"; });

class ZeroStops : public testing::TestWithParam<int> {};

TEST_P(ZeroStops, AtASignalWithTheStateSavedTogether) {
  const TemporaryFolder folder;
  const std::string texts = write_texts(folder.path());
  const Options options =
      kFull + Options{"--bf16=false", "--num_train_epochs=15", fmt::format("--zero_stage={}", GetParam())};
  const fs::path whole = folder.path() / "whole";
  train_ranks(2, training(texts, whole, options));
  const fs::path output = folder.path() / "stopped";
  set_options(training(texts, output, options));
  dist::Ranks ranks({.function = "fine_tune", .world_size = 2});
  ranks[0].wait_for("step 3/");
  ranks[1].send(SIGTERM);
  for (const dist::Outcome& outcome : ranks.end()) {
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kPreempted)) << outcome.report << outcome.err;
  }
  newest_checkpoint(output);
  const std::string log = train_ranks(2, training(texts, output, options));
  EXPECT_THAT(log, testing::HasSubstr("resuming from"));
  EXPECT_TRUE(files_ending_in(output, ".safetensors") == files_ending_in(whole, ".safetensors"));
}

TEST_P(ZeroStops, WithoutASaveWhenARankIsLost) {
  const TemporaryFolder folder;
  const std::string texts = write_texts(folder.path());
  const Options options = kFull + Options{"--bf16=false", "--num_train_epochs=400", "--save_steps=20",
                                          "--peer_timeout=2", fmt::format("--zero_stage={}", GetParam())};
  const fs::path output = folder.path() / "out";
  set_options(training(texts, output, options));
  dist::Ranks ranks({.function = "fine_tune", .world_size = 3});
  ranks[0].wait_for("step 45/");
  ranks[2].send(SIGKILL);
  for (size_t rank = 0; rank < 2; ++rank) {
    const dist::Outcome outcome = ranks[rank].end();
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kUnavailable)) << outcome.report << outcome.err;
    EXPECT_THAT(outcome.error(), testing::HasSubstr("rank 2")) << outcome.err;
    EXPECT_THAT(outcome.err, testing::Not(testing::HasSubstr("could not be saved")));
  }
  newest_checkpoint(output);
}
INSTANTIATE_TEST_SUITE_P(Stages, ZeroStops, testing::Values(1, 2, 3));

TEST(ZeroLog, OneProcessHasNothingToShareOut) {
  const TemporaryFolder folder;
  const std::string texts = write_texts(folder.path());
  const Options options = kLora + Options{"--max_steps=2", "--zero_stage=3"};
  const std::string log = train_ranks(1, training(texts, folder.path() / "out", options));
  EXPECT_THAT(log, testing::HasSubstr("zero_stage 3 has no effect"));
}

TEST(ZeroStage3, RefusesToTrainALayersModuleWholeBesideLora) {
  const TemporaryFolder folder;
  const std::string texts = write_texts(folder.path());
  const Options options = {"--max_steps=2", "--zero_stage=3", "--lora_target_modules=q_proj",
                           "--lora_modules_to_save=down_proj"};
  for (const dist::Outcome& outcome : run_ranks(2, training(texts, folder.path() / "out", options))) {
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kConfig)) << outcome.report << outcome.err;
    EXPECT_THAT(outcome.error(), testing::HasSubstr("down_proj"));
  }
}

TEST(ZeroStage3, TrainsTheEmbeddingWholeBesideLora) {
  const TemporaryFolder folder;
  const std::string texts = write_texts(folder.path());
  const Options options = {"--max_steps=3", "--lora_target_modules=q_proj", "--lora_modules_to_save=embed_tokens",
                           "--max_grad_norm=0"};
  train_ranks(2, training(texts, folder.path() / "0", options));
  train_ranks(2, training(texts, folder.path() / "3", options + Options{"--zero_stage=3"}));
  EXPECT_TRUE(files_ending_in(folder.path() / "3", ".safetensors") ==
              files_ending_in(folder.path() / "0", ".safetensors"));
}

TEST(ZeroStage3, TurnsRecomputationOn) {
  const TemporaryFolder folder;
  const std::string texts = write_texts(folder.path());
  const Options options = kLora + Options{"--max_steps=1", "--zero_stage=3"};
  const std::string log = train_ranks(2, training(texts, folder.path() / "out", options));
  EXPECT_THAT(log, testing::HasSubstr("zero_stage 3 needs gradient_checkpointing: it is on"));
}

TEST(ZeroLog, SaysThatItSavesWhileTheRanksStop) {
  const TemporaryFolder folder;
  const std::string texts = write_texts(folder.path());
  const Options options = kLora + Options{"--max_steps=2", "--zero_stage=1"};
  const std::string log = train_ranks(2, training(texts, folder.path() / "out", options));
  EXPECT_THAT(log, testing::HasSubstr("async_save has no effect"));
  EXPECT_EQ(log.find("async_save"), log.rfind("async_save")) << log;
}

}  // namespace
}  // namespace fettle::train
