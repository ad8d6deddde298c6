// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "cli/program.h"
#include "train/output_folder.h"

namespace fettle::cli {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

TEST(Train, WritesTheAdapterAndEverythingBesideIt) {
  const TemporaryFolder folder;
  const auto arguments = train_arguments(folder / "out", folder.write("train.jsonl", some_records()),
                                         {"--validation_split_percentage=25"});
  const Result result = run_program(arguments);
  ASSERT_EQ(result.code, 0) << result.err;
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json",
                           "metrics.jsonl", "all_results.json", "fettle_config.json", "checkpoint-2/manifest.json"}) {
    EXPECT_TRUE(fs::exists(folder / "out" / name)) << name;
  }
  const nlohmann::json results = nlohmann::json::parse(read_file(folder / "out" / "all_results.json"));
  EXPECT_EQ(results["steps"], 2);
  EXPECT_LT(results["eval_loss"], results["eval_loss_before"]);
  EXPECT_THAT(result.err, HasSubstr("verified"));
  EXPECT_EQ(result.out, "");

  const Result again = run_program(arguments);
  EXPECT_EQ(again.code, 0);
  EXPECT_THAT(again.err, HasSubstr("this run is complete already"));

  const Result other = run_program(train_arguments(folder / "out", folder / "train.jsonl", {"--seed=7"}));
  EXPECT_EQ(other.code, code(ExitCode::kConfig));
  EXPECT_THAT(other.error(), HasSubstr("seed (42 there, 7 here)"));
}

TEST(Train, ProfilesSomeStepsWithoutBecomingAnotherRun) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", some_records());
  const Result short_run = run_program(train_arguments(folder / "out", file, {"--profile_steps=2"}));
  ASSERT_EQ(short_run.code, 0) << short_run.err;
  EXPECT_THAT(short_run.err, HasSubstr("there will be no profile"));
  EXPECT_FALSE(fs::exists(folder / "out/profile.json"));
  const Result again = run_program(train_arguments(folder / "out", file, {"--profile_steps=1"}));
  EXPECT_THAT(again.err, HasSubstr("this run is complete already"));

  const Arguments longer = {"--overwrite_output_dir", "--max_steps=6"};
  Arguments profiled = longer;
  profiled.push_back("--profile_steps=2");
  const Result result = run_program(train_arguments(folder / "out", file, profiled));
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("linear layers"));
  const auto profile = nlohmann::json::parse(read_file(folder / "out/profile.json"));
  EXPECT_EQ(profile["steps"], 2);
  EXPECT_GT(profile["tokens"], 0);
  EXPECT_GT(fs::file_size(folder / "out/trace.json"), 0u);
  ASSERT_EQ(run_program(train_arguments(folder / "out", file, {"--overwrite_output_dir"})).code, 0);
  EXPECT_FALSE(fs::exists(folder / "out/profile.json"));
}

/// strftime_now decides tokens: the next day the run keeps the date that it began with.
TEST(Train, ARunTakenUpOnAnotherDayIsTheSameRun) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", some_records());
  const std::string chat =
      folder.write("dated.jinja", "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}");
  const Arguments more = {"--prompt_template=" + chat, "--dataset_cache_directory=" + (folder / "cache").string()};
  Arguments dated = more;
  dated.push_back("--template_date=2024-02-29");
  const Result first = run_program(train_arguments(folder / "out", file, dated));
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_THAT(first.err, HasSubstr("may not learn to stop"));  // the template writes no end mark
  const Result again = run_program(train_arguments(folder / "out", file, more));
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.err, HasSubstr("here 2024-02-29"));
  EXPECT_THAT(again.err, HasSubstr("this run is complete already"));
  dated.back() = "--template_date=2024-03-01";
  const Result other = run_program(train_arguments(folder / "out", file, dated));
  EXPECT_THAT(other.error(), HasSubstr("template_date (\"2024-02-29\" there, \"2024-03-01\" here)"));
  dated.back() = "--template_date=2024-02-30";
  EXPECT_THAT(run_program(train_arguments(folder / "new", file, dated)).error(), HasSubstr("YYYY-MM-DD"));

  ASSERT_EQ(run_program(train_arguments(folder / "plain", file)).code, 0);
  const Result plain = run_program(train_arguments(folder / "plain", file, {"--template_date=2024-02-29"}));
  EXPECT_THAT(plain.err, HasSubstr("this run is complete already"));
}

TEST(Train, AnInterruptedRunContinuesToTheSameWeights) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", some_records());
  const Arguments more = {"--save_steps=1", "--lora_dropout=0.1", "--save_total_limit=0"};
  ASSERT_EQ(run_program(train_arguments(folder / "whole", file, more)).code, 0);
  fs::copy(folder / "whole", folder / "broken", fs::copy_options::recursive);
  fs::remove_all(folder / "broken" / "checkpoint-2");
  std::string run = read_file(folder / "broken" / "run.json");
  run.replace(run.find("\"finished\": true"), 16, "\"finished\": false");
  write_file(folder / "broken" / "run.json", run);
  fs::remove(folder / "broken" / "adapter_model.safetensors");

  const Result resumed = run_program(train_arguments(folder / "broken", file, more));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("at step 1 of 2"));
  EXPECT_EQ(read_file(folder / "broken" / "adapter_model.safetensors"),
            read_file(folder / "whole" / "adapter_model.safetensors"));
}

/// As a run that was killed before it had saved its result.
void unfinish(const fs::path& folder) {
  nlohmann::json run = nlohmann::json::parse(read_file(folder / "run.json"));
  run["finished"] = false;
  write_file(folder / "run.json", run.dump());
  fs::remove(folder / "adapter_model.safetensors");
}

int64_t count_lines_with(const fs::path& file, const std::string& part) {
  const std::string text = read_file(file);
  int64_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

TEST(Train, AResumeAtTheLastStepEvaluatesItOnce) {
  for (const char* strategy : {"steps", "no"}) {
    SCOPED_TRACE(strategy);
    const TemporaryFolder folder;
    const auto arguments =
        train_arguments(folder / "out", folder.write("train.jsonl", some_records()),
                        {"--validation_split_percentage=25", "--eval_strategy=" + std::string(strategy)});
    ASSERT_EQ(run_program(arguments).code, 0);
    const fs::path metrics = folder / "out" / "metrics.jsonl";
    const int64_t lines = count_lines_with(metrics, "\"eval_loss\"");
    unfinish(folder / "out");
    const Result resumed = run_program(arguments);
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    EXPECT_THAT(resumed.err, HasSubstr("at step 2 of 2"));
    EXPECT_EQ(count_lines_with(metrics, "\"eval_loss\""), lines);
    EXPECT_TRUE(nlohmann::json::parse(read_file(folder / "out" / "all_results.json")).contains("eval_loss"));
  }
}

TEST(Train, AResumeRemovesLaterCheckpointsAndPrunesToItsOwn) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", some_records());
  const fs::path out = folder / "out";
  ASSERT_EQ(run_program(train_arguments(out, file, {"--max_steps=4", "--save_steps=2", "--save_total_limit=0"})).code,
            0);
  unfinish(out);
  fs::resize_file(out / "checkpoint-4" / "optimizer.safetensors", 100);
  const Result resumed =
      run_program(train_arguments(out, file, {"--max_steps=4", "--save_steps=1", "--save_total_limit=1"}));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("checkpoint-4 is broken"));
  EXPECT_THAT(resumed.err, HasSubstr("at step 2 of 4"));
  EXPECT_FALSE(fs::exists(out / "checkpoint-3"));
  EXPECT_TRUE(fs::exists(out / "checkpoint-4" / "manifest.json"));
}

TEST(Train, ACheckpointBeyondTheEndIsRefused) {
  const TemporaryFolder folder;
  const auto arguments = train_arguments(folder / "out", folder.write("train.jsonl", some_records()));
  ASSERT_EQ(run_program(arguments).code, 0);
  unfinish(folder / "out");
  const fs::path checkpoint = folder / "out" / "checkpoint-2";
  nlohmann::json state = nlohmann::json::parse(read_file(checkpoint / "trainer_state.json"));
  state["state"]["step"] = 3;
  write_file(checkpoint / "trainer_state.json", state.dump());
  nlohmann::json manifest = nlohmann::json::parse(read_file(checkpoint / "manifest.json"));
  Blake3 hash;
  const std::string text = state.dump();
  hash.update(std::as_bytes(std::span(text)));
  manifest["files"]["trainer_state.json"] = {{"bytes", state.dump().size()}, {"blake3", hash.finish()}};
  write_file(checkpoint / "manifest.json", manifest.dump());
  const Result edited = run_program(arguments);
  EXPECT_EQ(edited.code, code(ExitCode::kData)) << edited.err;
  EXPECT_THAT(edited.error(), HasSubstr("checkpoint-2 is broken: trainer_state.json is of step 3"));
  fs::rename(checkpoint, folder / "out" / "checkpoint-3");
  const Result beyond = run_program(arguments);
  EXPECT_EQ(beyond.code, code(ExitCode::kData)) << beyond.err;
  EXPECT_THAT(beyond.error(), HasSubstr("is at step 3, and this run has 2"));
}

TEST(Train, ALogThatNobodyReadsDoesNotEndIt) {
  const TemporaryFolder folder;
  const auto arguments = train_arguments(folder / "out", folder.write("train.jsonl", some_records()));
  const Result result = run_program(arguments, RLIM_INFINITY, [] {
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(99);
    ::dup2(ends[1], STDERR_FILENO);
    ::close(ends[0]);
    ::close(ends[1]);
  });
  EXPECT_EQ(result.code, 0);
  EXPECT_TRUE(fs::exists(folder / "out" / "adapter_model.safetensors"));
}

TEST(Train, CheckSaysWhatTrainingWillNeedAndChangesNothing) {
  const TemporaryFolder folder;
  auto arguments = train_arguments(folder / "out", folder.write("train.jsonl", some_records()));
  arguments.front() = "check";
  const Result result = run_program(arguments);
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("2 steps, "));
  EXPECT_THAT(result.out, HasSubstr("starts at the first step"));
  EXPECT_THAT(result.out, HasSubstr("GB at the peak"));
  EXPECT_FALSE(fs::exists(folder / "out"));
}

TEST(Train, CheckRefusesWhatTrainingWouldAndNoMore) {
  const TemporaryFolder folder;
  const fs::path out = folder / "out";
  const auto train = train_arguments(out, folder.write("train.jsonl", some_records()));
  auto check = train;
  check.front() = "check";
  const auto with = [](std::vector<std::string> arguments, const std::string& more) {
    arguments.push_back(more);
    return arguments;
  };
  for (const char* option : {"--lora_target_modules=no_such_layer", "--lora_exclude_modules=no_such_layer"}) {
    EXPECT_EQ(run_program(with(check, option)).code, code(ExitCode::kConfig)) << option;
  }
  ASSERT_EQ(run_program(train).code, 0);
  EXPECT_THAT(run_program(check).out, HasSubstr("this run is complete already"));
  // An adapter to start from that is not whole; and one that is gone, once the run has a checkpoint of its own.
  const fs::path start = folder / "start";
  fs::create_directory(start);
  for (const char* file : {"adapter_config.json", "adapter_model.safetensors"}) fs::copy(out / file, start / file);
  const fs::path further = folder / "further";
  auto go_on = train_arguments(further, folder / "train.jsonl", {"--adapter_name_or_path=" + start.string()});
  ASSERT_EQ(run_program(go_on).code, 0);
  fs::remove(further / "adapter_model.safetensors");
  fs::remove(start / "adapter_model.safetensors");
  go_on.front() = "check";
  const Result resumed = run_program(go_on);
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.out, HasSubstr("continues from"));
  fs::remove_all(further);
  EXPECT_EQ(run_program(go_on).code, code(ExitCode::kNoInput));
}

TEST(Train, AFinishedRunWithoutItsResultSavesItAgain) {
  const TemporaryFolder folder;
  const auto arguments = train_arguments(folder / "out", folder.write("train.jsonl", some_records()));
  ASSERT_EQ(run_program(arguments).code, 0);
  const std::string adapter = read_file(folder / "out" / "adapter_model.safetensors");
  fs::remove(folder / "out" / "adapter_model.safetensors");
  const Result again = run_program(arguments);
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.err, HasSubstr("its result is gone"));
  EXPECT_EQ(read_file(folder / "out" / "adapter_model.safetensors"), adapter);
}

TEST(Train, AnAdapterInItsOwnFolderSurvivesEveryInterruption) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", some_records());
  const fs::path out = folder / "out";
  ASSERT_EQ(run_program(train_arguments(out, file, {"--lora_r=4"})).code, 0);
  const std::string first = read_file(out / "adapter_model.safetensors");
  const auto arguments = train_arguments(out, file,
                                         {"--adapter_name_or_path=" + out.string(), "--overwrite_output_dir=true",
                                          "--max_steps=3", "--save_steps=1", "--save_total_limit=0"});
  ASSERT_EQ(run_program(arguments, /*largest_file=*/50'000).code, code(ExitCode::kIo)) << "the first checkpoint";
  EXPECT_EQ(read_file(out / "adapter_model.safetensors"), first);
  const Result whole = run_program(arguments);
  ASSERT_EQ(whole.code, 0) << whole.err;
  const std::string expected = read_file(out / "adapter_model.safetensors");
  EXPECT_NE(expected, first);

  unfinish(out);  // the adapter is gone altogether
  fs::remove(out / "adapter_config.json");
  fs::remove_all(out / "checkpoint-3");
  const Result resumed = run_program(arguments);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("at step 2 of 3"));
  EXPECT_EQ(read_file(out / "adapter_model.safetensors"), expected);
}

TEST(Train, AnAdapterKeepsItsOwnDropoutUnlessToldOtherwise) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", some_records());
  const std::string first = "--adapter_name_or_path=" + (folder / "first").string();
  ASSERT_EQ(run_program(train_arguments(folder / "first", file, {"--lora_r=4", "--lora_dropout=0.25"})).code, 0);
  ASSERT_EQ(run_program(train_arguments(folder / "kept", file, {first})).code, 0);
  ASSERT_EQ(run_program(train_arguments(folder / "changed", file, {first, "--lora_dropout=0"})).code, 0);
  const auto dropout = [&](const char* name) {
    return nlohmann::json::parse(read_file(folder / name / "adapter_config.json"))["lora_dropout"].get<double>();
  };
  EXPECT_EQ(dropout("kept"), 0.25);
  EXPECT_EQ(dropout("changed"), 0);
  const Result refused = run_program(train_arguments(folder / "refused", file, {first, "--lora_r=8"}));
  EXPECT_EQ(refused.code, code(ExitCode::kConfig));
  EXPECT_THAT(refused.error(), HasSubstr("lora_r"));
}

TEST(Train, TheSameSeedGivesTheSameBytesAtAnyNumberOfThreads) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", some_records());
  for (const char* threads : {"1", "2", "3"}) {
    const Arguments more = {std::string("--num_threads=") + threads, "--lora_dropout=0.1", "--save_strategy=no"};
    for (const char* name : {"first", "second"}) {
      const Result result = run_program(train_arguments(folder / name / threads, file, more));
      ASSERT_EQ(result.code, 0) << result.err;
    }
    EXPECT_EQ(read_file(folder / "first" / threads / "adapter_model.safetensors"),
              read_file(folder / "second" / threads / "adapter_model.safetensors"))
        << threads;
  }
}

TEST(Train, ASecondProcessInTheFolderIsRefused) {
  const TemporaryFolder folder;
  const auto arguments = train_arguments(folder / "out", folder.write("train.jsonl", some_records()));
  const train::FolderLock lock(folder / "out");
  const Result result = run_program(arguments);
  EXPECT_EQ(result.code, code(ExitCode::kUnavailable)) << result.err;
  EXPECT_THAT(result.error(), HasSubstr("another process is at work"));
  EXPECT_FALSE(fs::exists(folder / "out" / "run.json"));
}

TEST(Train, FullFineTuningWritesAModelThatEvaluates) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", some_records());
  const Result result = run_program(train_arguments(folder / "out", file, {"--use_peft=false", "--save_strategy=no"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const Result evaluated = run_program(
      {"eval", "--model_name_or_path=" + (folder / "out").string(), "--validation_file=" + file, "--num_threads=1"});
  ASSERT_EQ(evaluated.code, 0) << evaluated.err;
  EXPECT_GT(nlohmann::json::parse(evaluated.out)["eval_loss"], 0);
}

TEST(Train, ADivergedRunExitsWith76AndSavesNothing) {
  const TemporaryFolder folder;
  const Result result =
      run_program(train_arguments(folder / "out", folder.write("train.jsonl", some_records()),
                                  {"--learning_rate=1e38", "--max_steps=20", "--lr_scheduler_type=constant",
                                   "--max_grad_norm=0", "--use_peft=false"}));
  EXPECT_EQ(result.code, code(ExitCode::kDiverged)) << result.err;
  EXPECT_THAT(result.error(), HasSubstr("diverged at step"));
  EXPECT_FALSE(fs::exists(folder / "out" / "model.safetensors"));
}

TEST(Train, AFullDiskExitsWith74) {
  const TemporaryFolder folder;
  const Result result =
      run_program(train_arguments(folder / "out", folder.write("train.jsonl", some_records())), 100'000);
  EXPECT_EQ(result.code, code(ExitCode::kIo)) << result.err;
  EXPECT_THAT(result.error(), HasSubstr("checkpoint-2"));
  for (const fs::directory_entry& entry : fs::directory_iterator(folder / "out")) {
    EXPECT_THAT(entry.path().filename().string(), testing::Not(HasSubstr("checkpoint")));
  }
}

TEST(Train, AnExistingFolderOfSomethingElseIsLeftAlone) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "out");
  write_file(folder / "out" / "thesis.txt", "years of work");
  const Result result = run_program(train_arguments(folder / "out", folder.write("train.jsonl", some_records())));
  EXPECT_EQ(result.code, code(ExitCode::kConfig));
  EXPECT_THAT(result.error(), HasSubstr("is not empty"));
  EXPECT_THAT(result.error(), HasSubstr("overwrite_output_dir"));
}

TEST(Train, AnOutputThatIsAFileOrReadOnlyIsNamed) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", some_records());
  const Result result = run_program(train_arguments(fs::path(file) / "out", file));
  EXPECT_NE(result.code, 0);
  EXPECT_THAT(result.error(), HasSubstr("train.jsonl/out"));
  const Result read_only = run_program(train_arguments("/proc/fettle-out", file));
  EXPECT_NE(read_only.code, 0);
  EXPECT_NE(read_only.code, code(ExitCode::kInternal));
  EXPECT_THAT(read_only.error(), HasSubstr("/proc/fettle-out"));
}

}  // namespace
}  // namespace fettle::cli
