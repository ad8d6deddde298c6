// SPDX-License-Identifier: Apache-2.0
#include "train/output_folder.h"

#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "hub/adapter.h"
#include "hub/safetensors.h"
#include "train/checkpoint.h"
#include "train/probe.h"
#include "train/state.h"
#include "train/tensor_file.h"
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

void write_state(const fs::path& folder, int64_t step, const nlohmann::json& state) {
  const model::NamedTensor tensor{"a", at::full({1}, 1.0, at::kFloat)};
  write_checkpoint(folder, step, {"model.safetensors", {tensor}, {tensor}, state});
}

TrainingState state_at(int64_t step) {
  TrainingState state;
  state.step = step;
  state.batches_per_step = 1;
  return state;
}

void write_some_checkpoint(const fs::path& folder, int64_t step, const nlohmann::json& identity) {
  write_state(folder, step, {{"identity", identity}, {"state", state_at(step)}});
}

void write_some_adapter(const fs::path& folder) {
  hub::AdapterConfig adapter;
  adapter.target_modules.names = {"q_proj"};
  hub::write_adapter_config(folder, adapter);
  const at::Tensor tensor = at::full({1}, 1.0, at::kFloat);
  hub::write_safetensors(folder / "adapter_model.safetensors", TensorViews({{"a", tensor}}).views(), {});
}

void damage(const fs::path& file) {
  std::string content = read_file(file);
  content.back() = static_cast<char>(content.back() ^ 1);
  write_file(file, content);
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
  EXPECT_NE(run_identity(some_config("out"), "data", "weights"), identity);
}

TEST(TemplateDate, IsTheOneThatTheRunToContinueNoted) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder / "out");
  EXPECT_EQ(noted_template_date(config.output), "");
  config.data.template_date = "2024-02-29";
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config, identity, {});
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

TEST(RequireSameRun, KnowsOtherWeightsUnderTheSameName) {
  const config::Config config = some_config("out");
  const nlohmann::json stored = run_identity(config, "data", "weights");
  EXPECT_NO_THROW(require_same_run(stored, run_identity(config, "data", "weights"), "out"));
  EXPECT_NO_THROW(require_same_run(run_identity(config, "data"), stored, "out")) << "of an older version";
  try {
    require_same_run(stored, run_identity(config, "data", "other weights"), "out");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kConfig);
    EXPECT_THAT(error.what(), testing::HasSubstr("the base model's weights"));
  }
}

TEST(StartingPoint, FreshFolders) {
  const TemporaryFolder folder;
  const config::Config config = some_config(folder.path() / "new");
  const nlohmann::json identity = run_identity(config, "data");
  EXPECT_FALSE(find_starting_point(config, identity).checkpoint);
  fs::create_directories(folder.path() / "new/lost+found");
  EXPECT_FALSE(find_starting_point(config, identity).checkpoint);
}

TEST(StartingPoint, AForeignFolderIsNotTouched) {
  const TemporaryFolder folder;
  write_file(folder.path() / "thesis.txt", "x");
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  EXPECT_EQ(code_of([&] { find_starting_point(config, identity); }), ExitCode::kConfig);
  config.output.overwrite_output_dir = true;
  begin_run(config, identity, find_starting_point(config, identity));
  EXPECT_TRUE(fs::exists(folder.path() / "thesis.txt"));
}

TEST(StartingPoint, AnUnfinishedRunContinuesFromItsNewestCheckpoint) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config, identity, {});
  EXPECT_FALSE(find_starting_point(config, identity).checkpoint) << "killed before the first checkpoint";
  write_some_checkpoint(folder.path(), 3, identity);
  EXPECT_EQ(find_starting_point(config, identity).checkpoint, folder.path() / "checkpoint-3");
  config.output.overwrite_output_dir = true;
  EXPECT_EQ(find_starting_point(config, identity).checkpoint, folder.path() / "checkpoint-3")
      << "a restarted job must not throw its own work away";
  config.training.seed = 1;
  const nlohmann::json other = run_identity(config, "data");
  begin_run(config, other, find_starting_point(config, other));
  EXPECT_FALSE(fs::exists(folder.path() / "checkpoint-3"));
}

TEST(StartingPoint, AFinishedRunHasNothingToDoUnlessOverwritten) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config, identity, {});
  write_some_adapter(folder.path());
  finish_run(folder.path(), identity);
  EXPECT_TRUE(find_starting_point(config, identity).finished);
  config.output.resume_from_checkpoint = "none";
  EXPECT_EQ(code_of([&] { find_starting_point(config, identity); }), ExitCode::kConfig);
  config.output.resume_from_checkpoint = "auto";
  config.output.overwrite_output_dir = true;
  EXPECT_FALSE(find_starting_point(config, identity).finished);
}

TEST(StartingPoint, ANamedCheckpointMustBeWholeAndOfThisRun) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path() / "new");
  const nlohmann::json identity = run_identity(config, "data");
  config.output.resume_from_checkpoint = folder.path() / "checkpoint-3";
  EXPECT_EQ(code_of([&] { find_starting_point(config, identity); }), ExitCode::kNoInput);
  write_some_checkpoint(folder.path(), 3, identity);
  EXPECT_TRUE(find_starting_point(config, identity).checkpoint);
  EXPECT_EQ(code_of([&] { find_starting_point(config, run_identity(config, "other")); }), ExitCode::kConfig);
  fs::remove(folder.path() / "checkpoint-3/manifest.json");
  EXPECT_EQ(code_of([&] { find_starting_point(config, identity); }), ExitCode::kData);
}

TEST(StartingPoint, ANamedCheckpointDoesNotOpenTheFolderOfAnotherRun) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path() / "mine");
  const nlohmann::json identity = run_identity(config, "data");
  fs::create_directories(folder.path() / "elsewhere");
  write_some_checkpoint(folder.path() / "elsewhere", 3, identity);
  config.output.resume_from_checkpoint = folder.path() / "elsewhere/checkpoint-3";

  const nlohmann::json other = run_identity(config, "other data");
  begin_run(config, other, {});
  write_some_checkpoint(folder.path() / "mine", 30, other);
  EXPECT_EQ(code_of([&] { find_starting_point(config, identity); }), ExitCode::kConfig);
  write_file(folder.path() / "mine/run.json", "");
  EXPECT_EQ(code_of([&] { find_starting_point(config, identity); }), ExitCode::kConfig);

  config.output.overwrite_output_dir = true;
  const StartingPoint start = find_starting_point(config, identity);
  EXPECT_EQ(start.checkpoint, folder.path() / "elsewhere/checkpoint-3");
  begin_run(config, identity, start);
  EXPECT_TRUE(list_checkpoints(folder.path() / "mine").empty()) << "the other run's would be taken for this one's";
  EXPECT_TRUE(fs::exists(*start.checkpoint));
}

TEST(StartingPoint, SkipsCheckpointsThatAreBrokenOrOfAnotherRun) {
  const TemporaryFolder folder;
  const config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config, identity, {});
  write_some_checkpoint(folder.path(), 3, identity);
  write_some_checkpoint(folder.path(), 9, run_identity(config, "other data"));
  write_some_checkpoint(folder.path(), 12, identity);
  damage(folder.path() / "checkpoint-12/optimizer.safetensors");
  EXPECT_EQ(find_starting_point(config, identity).checkpoint, folder.path() / "checkpoint-3");
}

TEST(StartingPoint, CheckpointsOfWhichNoneCanBeUsedStopTheRun) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config, identity, {});
  write_some_checkpoint(folder.path(), 3, identity);
  damage(folder.path() / "checkpoint-3/optimizer.safetensors");
  try {
    find_starting_point(config, identity);
    FAIL() << "started over";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kData);
    EXPECT_THAT(error.what(), testing::HasSubstr("checkpoint-3 is broken: optimizer.safetensors"));
  }
  config.output.overwrite_output_dir = true;
  EXPECT_FALSE(find_starting_point(config, identity).checkpoint);
}

TEST(StartingPoint, AFileThatCannotBeReadIsNotABrokenCheckpoint) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config, identity, {});
  write_some_checkpoint(folder.path(), 3, identity);
  write_some_checkpoint(folder.path(), 6, identity);
  for (const char* name : {"manifest.json", "optimizer.safetensors"}) {
    const fs::path file = folder.path() / "checkpoint-6" / name;
    fs::remove(file);
    fs::create_symlink(file, file);  // ELOOP: an error that root meets too; exit 66
    EXPECT_EQ(code_of([&] { find_starting_point(config, identity); }), ExitCode::kNoInput) << name;
  }
}

TEST(StartingPoint, AFinishedRunWhoseResultIsGoneContinues) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config, identity, {});
  write_some_checkpoint(folder.path(), 3, identity);
  write_some_adapter(folder.path());
  finish_run(folder.path(), identity);
  EXPECT_TRUE(find_starting_point(config, identity).finished);
  fs::remove(folder.path() / "adapter_model.safetensors");
  EXPECT_FALSE(find_starting_point(config, identity).finished);
  EXPECT_EQ(find_starting_point(config, identity).checkpoint, folder.path() / "checkpoint-3");
}

TEST(StartingPoint, AStateThatDoesNotFitIsPassedOver) {
  const auto changed = [](const char* key, const nlohmann::json& value) {
    nlohmann::json state = state_at(7);
    state[key] = value;
    return state;
  };
  const std::vector<nlohmann::json> states = {changed("step", 6),
                                              changed("step", -1),
                                              changed("step", 7.5),
                                              changed("cursor", {{"epoch", 0}, {"batch", -1}}),
                                              changed("batches_per_step", 0),
                                              nlohmann::json::array(),
                                              nullptr};
  for (const nlohmann::json& state : states) {
    SCOPED_TRACE(state.dump());
    const TemporaryFolder folder;
    const config::Config config = some_config(folder.path());
    const nlohmann::json identity = run_identity(config, "data");
    begin_run(config, identity, {});
    write_some_checkpoint(folder.path(), 3, identity);
    write_state(folder.path(), 7, {{"identity", identity}, {"state", state}});
    EXPECT_EQ(find_starting_point(config, identity).checkpoint, folder.path() / "checkpoint-3");
  }
}

TEST(StartingPoint, AFinishedRunGoesBackOnlyIfTold) {
  const TemporaryFolder folder;
  config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config, identity, {});
  write_some_checkpoint(folder.path(), 3, identity);
  config.output.resume_from_checkpoint = folder.path() / "checkpoint-3";
  EXPECT_TRUE(find_starting_point(config, identity).checkpoint) << "it is not finished yet";
  finish_run(folder.path(), identity);
  EXPECT_EQ(code_of([&] { find_starting_point(config, identity); }), ExitCode::kConfig);
  const TemporaryFolder elsewhere;
  fs::copy(folder.path() / "checkpoint-3", elsewhere / "checkpoint-3");
  for (const fs::path& checkpoint : {folder.path() / "checkpoint-3", elsewhere.path() / "checkpoint-3"}) {
    SCOPED_TRACE(checkpoint);
    config.output.resume_from_checkpoint = checkpoint;
    config.output.overwrite_output_dir = false;
    EXPECT_EQ(code_of([&] { find_starting_point(config, identity); }), ExitCode::kConfig);
    config.output.overwrite_output_dir = true;
    EXPECT_TRUE(find_starting_point(config, identity).checkpoint);
  }
}

TEST(StartingPoint, WhatARunReadsIsNotOverwritten) {
  const TemporaryFolder folder;
  const fs::path out = folder / "out";
  config::Config config = some_config(out);
  begin_run(config, run_identity(config, "old"), {});
  write_some_checkpoint(out, 3, run_identity(config, "old"));
  write_file(out / "metrics.jsonl", "{}\n");
  write_file(out / "records.jsonl", "{}\n");
  config.output.overwrite_output_dir = true;
  const auto start = [&] { find_starting_point(config, run_identity(config, "new")); };
  EXPECT_NO_THROW(start());
  config.data.train_file = {out / "records.jsonl"};
  EXPECT_NO_THROW(start()) << "it stays";
  config.data.train_file = {out / "metrics.jsonl"};
  EXPECT_EQ(code_of(start), ExitCode::kConfig);
  config.data.train_file = {"a.jsonl"};
  config.data.dataset_name = out;
  EXPECT_NO_THROW(start()) << "its records stay";
  config.data.dataset_name.clear();
  config.model.config_name = out / "checkpoint-3";
  EXPECT_EQ(code_of(start), ExitCode::kConfig);
  config.model.config_name.clear();
  config.model.adapter_name_or_path = out / "checkpoint-3";
  EXPECT_EQ(code_of(start), ExitCode::kConfig);
  config.model.adapter_name_or_path = out;
  EXPECT_NO_THROW(start());
  config.model.adapter_name_or_path.clear();
  config.model.model_name_or_path = folder.path() / "out/../out";
  EXPECT_EQ(code_of(start), ExitCode::kConfig);
}

TEST(StartingPoint, DeepJsonIsADamagedFile) {
  const TemporaryFolder folder;
  const config::Config config = some_config(folder.path());
  const nlohmann::json identity = run_identity(config, "data");
  begin_run(config, identity, {});
  write_some_checkpoint(folder.path(), 3, identity);
  write_some_checkpoint(folder.path(), 5, identity);
  const std::string deep = std::string(300000, '[');
  write_file(folder / "run.json", "{\"identity\":" + deep);
  write_file(folder.path() / "checkpoint-5/manifest.json", "{\"files\":" + deep);
  EXPECT_EQ(find_starting_point(config, identity).checkpoint, folder.path() / "checkpoint-3");
}

TEST(BeginRun, KeepsTheAdapterThatItStartsFrom) {
  for (const bool in_place : {true, false}) {
    const TemporaryFolder folder;
    config::Config config = some_config(folder.path());
    config.output.overwrite_output_dir = true;
    if (in_place) config.model.adapter_name_or_path = folder.path() / ".";
    write_some_adapter(folder.path());
    begin_run(config, run_identity(config, "data"), {});
    EXPECT_EQ(fs::exists(folder.path() / "adapter_model.safetensors"), in_place);
    EXPECT_EQ(fs::exists(folder.path() / "adapter_config.json"), in_place);
  }
}

TEST(BeginRun, RemovesAProbeOfWhatItWillReplace) {
  const TemporaryFolder folder;
  const config::Config config = some_config(folder.path());
  folder.write(kProbeFile, "of an earlier adapter");
  begin_run(config, run_identity(config, "data"), {.keeps_folder = true});
  EXPECT_FALSE(fs::exists(folder.path() / kProbeFile));
}

TEST(FolderLock, HoldsOneProcessAtATime) {
  const TemporaryFolder folder;
  const fs::path output_dir = folder.path() / "out";
  {
    const FolderLock lock(output_dir);
    EXPECT_EQ(code_of([&] { const FolderLock second(output_dir); }), ExitCode::kUnavailable);
  }
  EXPECT_EQ(code_of([&] { const FolderLock later(output_dir); }), ExitCode::kOk);
  EXPECT_FALSE(find_starting_point(some_config(output_dir), {}).checkpoint) << "a lock file alone is an empty folder";
}

}  // namespace
}  // namespace fettle::train
