// SPDX-License-Identifier: Apache-2.0
#include "train/output_folder.h"

#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "train/checkpoint.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

namespace fs = std::filesystem;

config::Config some_config(const fs::path& output_dir) {
  config::Config config;
  config.data.train_file = {"a.jsonl"};
  config.output.output_dir = output_dir;
  return config;
}

void write_some_checkpoint(const fs::path& folder, int64_t step, const nlohmann::json& identity) {
  const model::NamedTensor tensor{"a", at::full({1}, 1.0, at::kFloat)};
  write_checkpoint(folder, step, {"model.safetensors", {tensor}, {tensor}, {{"identity", identity}}});
}

TEST(RunIdentity, CountsOnlyWhatChangesTheTraining) {
  config::Config config = some_config("out");
  const nlohmann::json identity = run_identity(config, "data");
  config.output.output_dir = "elsewhere";
  config.training.save_steps = 3;
  config.training.logging_steps = 1;
  config.device.num_threads = 7;
  config.generation.prompt = "x";
  EXPECT_EQ(run_identity(config, "data"), identity);
  config.training.learning_rate = 1e-3;
  EXPECT_NE(run_identity(config, "data"), identity);
  EXPECT_NE(run_identity(some_config("out"), "other data"), identity);
}

TEST(TemplateDate, IsTheOneThatTheRunToContinueNoted) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder / "out");
  EXPECT_EQ(noted_template_date(config.output), "");
  config.data.template_date = "2024-02-29";
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config.output, identity, {});
  EXPECT_EQ(noted_template_date(config.output), "2024-02-29");
  write_some_checkpoint(folder.path(), 3, identity);
  config.output = {.output_dir = folder / "new", .resume_from_checkpoint = folder / "checkpoint-3"};
  EXPECT_EQ(noted_template_date(config.output), "2024-02-29");
  config.output = {.output_dir = folder / "out", .resume_from_checkpoint = "none"};
  EXPECT_EQ(noted_template_date(config.output), "");
}

TEST(RunIdentity, AMovedFileWithTheSameContentIsTheSameRun) {
  config::Config config = some_config("out");
  const nlohmann::json identity = run_identity(config, "data");
  config.data.train_file = {"moved.jsonl"};
  EXPECT_NO_THROW(require_same_run(identity, run_identity(config, "data"), "out"));
}

TEST(RunIdentity, EvaluationCountsForASchedulethatFollowsIt) {
  config::Config config = some_config("out");
  config.training.lr_scheduler_type = "reduce_lr_on_plateau";
  config.training.eval_strategy = "epoch";
  const nlohmann::json identity = run_identity(config, "data");
  config.training.eval_strategy = "steps";
  EXPECT_NE(run_identity(config, "data"), identity);
}

TEST(RequireSameRun, NamesWhatDiffersWithBothValues) {
  config::Config config = some_config("out");
  const nlohmann::json stored = run_identity(config, "data");
  config.training.seed = 43;
  config.data.completion_only_loss = false;
  try {
    require_same_run(stored, run_identity(config, "other"), "out");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kConfig);
    EXPECT_THAT(error.what(), testing::HasSubstr("seed (42 there, 43 here)"));
    EXPECT_THAT(error.what(), testing::HasSubstr("completion_only_loss (true there, false here)"));
  }
}

TEST(StartingPoint, FreshFolders) {
  const TemporaryFolder folder;
  const config::Config config = some_config(folder.path() / "new");
  const nlohmann::json identity = run_identity(config, "data");
  EXPECT_FALSE(find_starting_point(config.output, identity).checkpoint);
  fs::create_directories(folder.path() / "new/lost+found");
  EXPECT_FALSE(find_starting_point(config.output, identity).checkpoint);
}

TEST(StartingPoint, AForeignFolderIsNotTouched) {
  const TemporaryFolder folder;
  write_file(folder.path() / "thesis.txt", "x");
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  EXPECT_EQ(code_of([&] { find_starting_point(config.output, identity); }), ExitCode::kConfig);
  config.output.overwrite_output_dir = true;
  begin_run(config.output, identity, find_starting_point(config.output, identity));
  EXPECT_TRUE(fs::exists(folder.path() / "thesis.txt"));
}

TEST(StartingPoint, AnUnfinishedRunContinuesFromItsNewestCheckpoint) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config.output, identity, {});
  EXPECT_FALSE(find_starting_point(config.output, identity).checkpoint) << "killed before the first checkpoint";
  write_some_checkpoint(folder.path(), 3, identity);
  EXPECT_EQ(find_starting_point(config.output, identity).checkpoint, folder.path() / "checkpoint-3");
  config.output.overwrite_output_dir = true;
  EXPECT_EQ(find_starting_point(config.output, identity).checkpoint, folder.path() / "checkpoint-3")
      << "a restarted job must not throw its own work away";
  config.training.seed = 1;
  const nlohmann::json other = run_identity(config, "data");
  begin_run(config.output, other, find_starting_point(config.output, other));
  EXPECT_FALSE(fs::exists(folder.path() / "checkpoint-3"));
}

TEST(StartingPoint, AFinishedRunHasNothingToDoUnlessOverwritten) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config.output, identity, {});
  finish_run(folder.path(), identity);
  EXPECT_TRUE(find_starting_point(config.output, identity).finished);
  config.output.resume_from_checkpoint = "none";
  EXPECT_EQ(code_of([&] { find_starting_point(config.output, identity); }), ExitCode::kConfig);
  config.output.resume_from_checkpoint = "auto";
  config.output.overwrite_output_dir = true;
  EXPECT_FALSE(find_starting_point(config.output, identity).finished);
}

TEST(StartingPoint, ANamedCheckpointMustBeWholeAndOfThisRun) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path() / "new");
  const nlohmann::json identity = run_identity(config, "data");
  config.output.resume_from_checkpoint = folder.path() / "checkpoint-3";
  EXPECT_EQ(code_of([&] { find_starting_point(config.output, identity); }), ExitCode::kNoInput);
  write_some_checkpoint(folder.path(), 3, identity);
  EXPECT_TRUE(find_starting_point(config.output, identity).checkpoint);
  EXPECT_EQ(code_of([&] { find_starting_point(config.output, run_identity(config, "other")); }), ExitCode::kConfig);
  fs::remove(folder.path() / "checkpoint-3/manifest.json");
  EXPECT_EQ(code_of([&] { find_starting_point(config.output, identity); }), ExitCode::kData);
}

}  // namespace
}  // namespace fettle::train
