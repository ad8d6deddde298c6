// SPDX-License-Identifier: Apache-2.0
// fettle eval on several models, and on multiple-choice tasks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/program.h"

namespace fettle::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::vector<json> lines_of(const std::filesystem::path& file) {
  std::vector<json> lines;
  std::istringstream text(read_file(file));
  for (std::string line; std::getline(text, line);) lines.push_back(json::parse(line));
  return lines;
}

Arguments eval_arguments(const Arguments& more) {
  Arguments arguments = {"eval", "--model_name_or_path=" + stories(), "--num_threads=1", "--bf16=false"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// The name of an adapter that was trained for two steps.
std::string train_adapter(const TemporaryFolder& folder) {
  const std::string out = folder / "adapter";
  const Result result =
      run_program(train_arguments(out, folder.write("t.jsonl", some_records()), {"--learning_rate=0.01"}));
  EXPECT_EQ(result.code, 0) << result.err;
  return out;
}

/// A copy of the model with another file of that name in it.
std::string changed_model(const TemporaryFolder& folder, const std::string& name, const std::string& content) {
  const auto copy = folder / "changed";
  std::filesystem::copy(stories(), copy);
  write_file(copy / name, content);
  return copy;
}

TEST(EvalCompare, PutsModelsAndAdaptersSideBySide) {
  const TemporaryFolder folder;
  const std::string adapter = train_adapter(folder);
  const std::string records = "--validation_file=" + folder.write("v.jsonl", some_records());
  const Result alone = run_program(eval_arguments({records}));
  ASSERT_EQ(alone.code, 0) << alone.err;
  const Result result = run_program(eval_arguments(
      {records, "--compare=" + stories() + "," + adapter, "--per_record=" + (folder / "r.jsonl").string()}));
  ASSERT_EQ(result.code, 0) << result.err;
  const json models = json::parse(result.out)["models"];
  ASSERT_EQ(models.size(), 3u);
  EXPECT_EQ(models[1]["name"], stories());
  EXPECT_EQ(models[2]["name"], adapter);
  const double loss = json::parse(alone.out)["eval_loss"];
  EXPECT_NEAR(models[0]["eval_loss"], loss, 1e-6);
  EXPECT_EQ(models[0]["loss_difference"], 0.0);
  EXPECT_EQ(models[1]["eval_loss"], models[0]["eval_loss"]);
  EXPECT_EQ(models[1]["perplexity_ratio"], 1.0);
  EXPECT_LT(models[2]["eval_loss"], models[0]["eval_loss"]);
  EXPECT_NEAR(models[2]["loss_difference"], models[2]["eval_loss"].get<double>() - loss, 1e-6);
  EXPECT_NEAR(models[2]["perplexity_ratio"], models[2]["perplexity"].get<double>() / std::exp(loss), 1e-6);
  EXPECT_EQ(models[2]["target_tokens"], models[0]["target_tokens"]);
  EXPECT_THAT(result.err, HasSubstr("perplexity"));
  const auto per_record = lines_of(folder / "r.jsonl");
  ASSERT_EQ(per_record.size(), 24u);
  EXPECT_EQ(per_record[23]["model"], adapter);
  EXPECT_EQ(per_record[23]["record"], 7);
}

TEST(EvalCompare, RefusesAnotherVocabulary) {
  const TemporaryFolder folder;
  json tokenizer = json::parse(read_file(std::filesystem::path(stories()) / "tokenizer.json"));
  json& vocabulary = tokenizer["model"]["vocab"];
  std::string first;
  std::string second;
  for (const auto& [token, id] : vocabulary.items()) {
    if (id == 400) first = token;
    if (id == 401) second = token;
  }
  vocabulary[first] = 401;
  vocabulary[second] = 400;
  const std::string other = changed_model(folder, "tokenizer.json", tokenizer.dump());
  const std::string records = "--validation_file=" + folder.write("v.jsonl", some_records());
  const Result result = run_program(eval_arguments({records, "--compare=" + other}));
  EXPECT_EQ(result.code, code(ExitCode::kConfig));
  EXPECT_THAT(result.error(), HasSubstr("token 400"));
  const Result same = run_program(eval_arguments({records, "--compare=" + other, "--tokenizer_name=" + stories()}));
  EXPECT_EQ(same.code, 0) << same.err;
}

TEST(Eval, WritesOverNothingThatItReads) {
  const TemporaryFolder folder;
  const std::string records = folder.write("v.jsonl", some_records());
  const std::string model = folder / "model";
  std::filesystem::copy(stories(), model, std::filesystem::copy_options::recursive);
  for (const std::string& file : {records, model + "/model.safetensors", model + "/../model/config.json"}) {
    const std::string before = read_file(file);
    for (const char* option : {"--per_record=", "--logits_file="}) {
      const Result result =
          run_program({"eval", "--model_name_or_path=" + model, "--validation_file=" + records, option + file});
      EXPECT_EQ(result.code, code(ExitCode::kUsage)) << option << file;
      EXPECT_THAT(result.error(), HasSubstr("is read by this command"));
    }
    EXPECT_EQ(read_file(file), before);
  }
}

TEST(EvalCompare, RefusesWhatIsNoModel) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "empty");
  const std::string records = "--validation_file=" + folder.write("v.jsonl", some_records());
  Result result = run_program(eval_arguments({records, "--compare=" + (folder / "empty").string()}));
  EXPECT_EQ(result.code, code(ExitCode::kNoInput));
  EXPECT_THAT(result.error(), HasSubstr("neither config.json nor adapter_config.json"));
  result = run_program(
      eval_arguments({records, "--compare=" + stories(), "--logits_file=" + (folder / "l.safetensors").string()}));
  EXPECT_EQ(result.code, code(ExitCode::kConfig));
}

constexpr const char* kItems =
    R"({"context": "Once upon a ", "choices": ["zxq", "time"], "gold": 1}
{"context": "There was a little girl", "choices": ["] [", " named Lily."], "gold": 1}
)";

TEST(EvalTask, CountsRightAnswers) {
  const TemporaryFolder folder;
  const std::string task = "--task_file=" + folder.write("task.jsonl", kItems);
  const Result result = run_program(eval_arguments({task, "--task_output=" + (folder / "o.jsonl").string()}));
  ASSERT_EQ(result.code, 0) << result.err;
  const json printed = json::parse(result.out);
  EXPECT_FALSE(printed.contains("eval_loss"));
  EXPECT_EQ(printed["task"]["items"], 2);
  EXPECT_EQ(printed["task"]["acc"], 1.0);
  EXPECT_EQ(printed["task"]["acc_stderr"], 0.0);
  const auto items = lines_of(folder / "o.jsonl");
  ASSERT_EQ(items.size(), 2u);
  EXPECT_EQ(items[1]["gold"], 1);
  EXPECT_GT(items[1]["log_likelihoods"][1], items[1]["log_likelihoods"][0]);
}

TEST(EvalTask, GoesWithRecordsAndWithOtherModels) {
  const TemporaryFolder folder;
  const Result result =
      run_program(eval_arguments({"--task_file=" + folder.write("task.jsonl", kItems),
                                  "--validation_file=" + folder.write("v.jsonl", some_records()),
                                  "--compare=" + stories(), "--task_output=" + (folder / "o.jsonl").string()}));
  ASSERT_EQ(result.code, 0) << result.err;
  const json models = json::parse(result.out)["models"];
  ASSERT_EQ(models.size(), 2u);
  for (const json& model : models) {
    EXPECT_EQ(model["records"], 8);
    EXPECT_EQ(model["task"]["acc"], 1.0);
  }
  EXPECT_EQ(lines_of(folder / "o.jsonl").size(), 4u);
}

TEST(EvalTask, RefusesWhatItCannotUse) {
  const TemporaryFolder folder;
  const std::string file = folder.write("task.jsonl", R"({"context": "a", "choices": ["b", "c"]})");
  Result result = run_program(eval_arguments({"--task_file=" + file}));
  EXPECT_EQ(result.code, code(ExitCode::kData));
  EXPECT_THAT(result.error(), HasSubstr("task.jsonl:1: there is no \"gold\""));
  result = run_program(eval_arguments({"--task_file=" + (folder / "absent.jsonl").string()}));
  EXPECT_EQ(result.code, code(ExitCode::kNoInput));
  result = run_program(eval_arguments({"--task_file=" + file, "--task_output=" + file}));
  EXPECT_EQ(result.code, code(ExitCode::kUsage));
  result = run_program(eval_arguments({"--task_file=" + file, "--per_record=" + (folder / "r.jsonl").string()}));
  EXPECT_EQ(result.code, code(ExitCode::kConfig)) << result.err;
  result = run_program(eval_arguments({}));
  EXPECT_EQ(result.code, code(ExitCode::kUsage));
}

}  // namespace
}  // namespace fettle::cli
