// SPDX-License-Identifier: Apache-2.0
// What each wrong file or command line is answered with: the exact exit code, and a line that names the option, the
// place and the way out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/utf8.h"
#include "config/parse.h"

namespace fettle::config {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

struct Failure {
  ExitCode code;
  std::string text;  // what and hint
};

template <typename Function>
Failure failure_of(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    return {error.code(), std::string(error.what()) + "; " + error.hint()};
  }
  return {ExitCode::kOk, ""};
}

void expect_failure(const Failure& failure, ExitCode code, const std::vector<std::string>& parts) {
  EXPECT_EQ(static_cast<int>(failure.code), static_cast<int>(code)) << failure.text;
  for (const std::string& part : parts) EXPECT_THAT(failure.text, HasSubstr(part));
  EXPECT_TRUE(std::ranges::none_of(failure.text, [](unsigned char c) { return c < 0x20; })) << failure.text;
}

struct TextCase {
  std::string text;
  ExitCode code;
  std::vector<std::string> parts;

  friend void PrintTo(const TextCase& bad, std::ostream* out) { *out << quote(bad.text); }
};

constexpr ExitCode kUsage = ExitCode::kUsage;
constexpr ExitCode kBad = ExitCode::kConfig;

class BadYaml : public testing::TestWithParam<TextCase> {};

TEST_P(BadYaml, IsRefused) {
  const TextCase& bad = GetParam();
  expect_failure(failure_of([&] { parse_text(bad.text, Syntax::kYaml, "c.yaml"); }), bad.code, bad.parts);
}

INSTANTIATE_TEST_SUITE_P(
    Values, BadYaml,
    testing::Values(
        TextCase{"seed: 1\nlearning_rat: 1", kUsage, {"'learning_rat'", "c.yaml:2", "did you mean learning_rate?"}},
        TextCase{"xyzzy_plugh: 1", kUsage, {"unknown option 'xyzzy_plugh'", "c.yaml:1", "fettle config --defaults"}},
        TextCase{"lora_ranks: 8", kUsage, {"did you mean lora_rank?"}},
        TextCase{"training:\n  seed: 1", kUsage, {"unknown option 'training'", "options are flat"}},
        TextCase{"<<: {a: 1}", kUsage, {"'<<'"}},
        TextCase{"packing: maybe", kUsage, {"packing = 'maybe'", "c.yaml:1", "true or false"}},
        TextCase{"packing: ''", kUsage, {"packing = ''"}},
        TextCase{"packing: [true]", kUsage, {"packing", "not a list"}},
        TextCase{"max_steps: many", kUsage, {"max_steps = 'many'", "not an integer", "at least -1"}},
        TextCase{"max_steps: 1.5", kUsage, {"not an integer"}},
        TextCase{"max_steps: 99999999999999999999", kUsage, {"not an integer"}},
        TextCase{"max_steps: 0x10", kUsage, {"not an integer"}},
        TextCase{"max_steps: -2", kUsage, {"out of range", "at least -1"}},
        TextCase{"learning_rate: 1,000", kUsage, {"learning_rate = '1,000'", "not a number"}},
        TextCase{"learning_rate: 2e", kUsage, {"not a number"}},
        TextCase{"learning_rate: .inf", kUsage, {"not a number"}},
        TextCase{"learning_rate: nan", kUsage, {"not a number"}},
        TextCase{"learning_rate: 1e999", kUsage, {"not a number"}},
        TextCase{"learning_rate: -1e-4", kUsage, {"out of range", "at least 0"}},
        TextCase{"lora_r: 0", kUsage, {"lora_r = '0'", "integer, at least 1"}},
        TextCase{"lora_dropout: 1.0", kUsage, {"out of range", "below 1"}},
        TextCase{"lora_alpha: 0", kUsage, {"above 0"}}, TextCase{"top_p: 1.01", kUsage, {"above 0 and at most 1"}},
        TextCase{"warmup_ratio: 3", kUsage, {"at most 1"}},
        TextCase{"save_steps: 1.5", kUsage, {"out of range", "whole from 1 on"}},
        TextCase{"validation_split_percentage: 100", kUsage, {"below 100"}},
        TextCase{"max_seq_length: 1", kUsage, {"max_seq_length = '1'", "at least 2"}},
        TextCase{
            "eval_strategy: stesp", kUsage, {"eval_strategy = 'stesp'", "did you mean steps?", "no, steps, epoch"}},
        TextCase{"lr_scheduler_type: cosin", kUsage, {"'cosin'", "did you mean cosine?", "linear"}},
        TextCase{"optim: adafactor", kUsage, {"not available in this version", "adamw"}},
        TextCase{"device: npu", kUsage, {"'npu'", "auto, cpu, cuda, hpu"}},
        TextCase{"prompt_template: alpcaa", kUsage, {"'alpcaa'", "did you mean alpaca?", "a path"}},
        TextCase{"max_shard_size: 5 gigabytes", kUsage, {"max_shard_size", "not a size", "5GB"}},
        TextCase{"max_shard_size: -1GB", kUsage, {"not a size"}},
        TextCase{"output_dir: [a, b]", kUsage, {"output_dir", "not a list"}},
        TextCase{"output_dir: {a: b}", kUsage, {"output_dir", "no map"}},
        TextCase{"lora_target_modules: ['']", kUsage, {"lora_target_modules", "empty item"}},
        TextCase{"lr_scheduler_kwargs: num_cycles", kUsage, {"lr_scheduler_kwargs", "not a flat JSON object"}},
        TextCase{"lr_scheduler_kwargs: '{\"a\": {\"b\": 1}}'", kUsage, {"not a flat JSON object"}},
        TextCase{"output_dir: \"a\xff\"", kUsage, {"output_dir", "not valid UTF-8"}},
        TextCase{"fp16: true", kUsage, {"fp16", "not available in this version", "bf16"}},
        TextCase{"report_to: wandb", kUsage, {"report_to", "c.yaml:1", "not available in this version"}},
        TextCase{"push_to_hub: true", kUsage, {"push_to_hub", "not available in this version"}},
        TextCase{"torch_dtype: float16", kUsage, {"torch_dtype = 'float16'", "bfloat16", "bf16"}}));

INSTANTIATE_TEST_SUITE_P(
    Documents, BadYaml,
    testing::Values(TextCase{"seed: 1\nseed: 1", kBad, {"c.yaml:2", "'seed' is given twice", "line 1"}},
                    TextCase{
                        "lora_r: 8\nlora_rank: 16", kBad, {"lora_r (c.yaml:1)", "lora_rank (c.yaml:2)", "keep lora_r"}},
                    TextCase{"- seed\n- 1", kBad, {"c.yaml:1", "is a list, not a map"}},
                    TextCase{"seed", kBad, {"c.yaml:1", "not a map"}},
                    TextCase{"seed: 1\npacking: [true\noptim: adamw\n", kBad, {"c.yaml:", "not valid YAML"}},
                    TextCase{"seed: 1\n  packing: true", kBad, {"c.yaml:2", "not valid YAML"}},
                    TextCase{"seed: \"\\\n\"\noutput_dir: \"\\\v\"", kBad, {"not valid YAML", "escape"}},
                    TextCase{"seed: 1\n\tpacking: true", kBad, {"c.yaml:2", "not valid YAML"}},
                    TextCase{"a: &x [1]\nb: *x", kBad, {"c.yaml:2", "aliases"}},
                    TextCase{"seed: !!int 1", kBad, {"c.yaml:1", "tag"}},
                    TextCase{"seed: 1\n---\nseed: 2", kBad, {"second document"}},
                    TextCase{"[a]: 1", kBad, {"not a name"}},
                    TextCase{"lr_scheduler_kwargs: {a: {b: 1}}", kBad, {"nested too deeply", "flat"}},
                    TextCase{"lr_scheduler_kwargs: {a: 1, a: 2}", kBad, {"lr_scheduler_kwargs", "'a' twice"}},
                    TextCase{"lora_target_modules: [[q_proj]]", kBad, {"nested too deeply"}},
                    TextCase{"\"a\\nb\": [~]", kBad, {"'a b' has an empty item"}},
                    TextCase{"lora_target_modules: [~]", kBad, {"lora_target_modules", "empty item"}},
                    TextCase{"a: " + std::string(100000, '['), kBad, {"nested too deeply"}},
                    TextCase{"a: " + std::string(50000, '{'), kBad, {}},
                    TextCase{"# " + std::string(kLargestFile, 'x'), kBad, {"bytes"}}));

class BadJson : public testing::TestWithParam<TextCase> {};

TEST_P(BadJson, IsRefused) {
  const TextCase& bad = GetParam();
  expect_failure(failure_of([&] { parse_text(bad.text, Syntax::kJson, "c.json"); }), bad.code, bad.parts);
}

INSTANTIATE_TEST_SUITE_P(
    Documents, BadJson,
    testing::Values(TextCase{"{\n\"seed\": 1,\n\"seed\": 2}", kBad, {"c.json:3", "given twice", "line 2"}},
                    TextCase{"{\n\"seed\": 1,\n}", kBad, {"c.json:3", "not valid JSON"}},
                    TextCase{"{\"seed\": 1} x", kBad, {"c.json:1", "not valid JSON"}},
                    TextCase{"{\"seed\": ", kBad, {"c.json:1", "not valid JSON"}},
                    TextCase{"[1]", kBad, {"c.json:1", "is a list"}}, TextCase{"3", kBad, {"c.json:1", "not a map"}},
                    TextCase{"{\"output_dir\": \"\xff\"}", kBad, {"not valid JSON"}},
                    TextCase{"{\"a\": [[1]]}", kBad, {"nested too deeply"}},
                    TextCase{"{\"lr_scheduler_kwargs\": {\"a\": [1]}}", kBad, {"nested too deeply"}},
                    TextCase{"{\n\"seed\": 1,\n\"sed\": 2\n}", kUsage, {"'sed'", "c.json:3", "did you mean seed?"}},
                    TextCase{"{\"a\": " + std::string(100000, '['), kBad, {"nested too deeply"}}));

struct ArgumentCase {
  std::vector<std::string> arguments;
  Command command;
  ExitCode code;
  std::vector<std::string> parts;
};

class BadArguments : public testing::TestWithParam<ArgumentCase> {};

TEST_P(BadArguments, AreRefused) {
  const ArgumentCase& bad = GetParam();
  expect_failure(failure_of([&] { parse(bad.arguments, bad.command); }), bad.code, bad.parts);
}

INSTANTIATE_TEST_SUITE_P(
    All, BadArguments,
    testing::Values(
        ArgumentCase{{"--learning_rat=1"}, Command::kTrain, kUsage, {"command line", "did you mean learning_rate?"}},
        ArgumentCase{{"-x"}, Command::kTrain, kUsage, {"'-x'", "--option=value"}},
        ArgumentCase{{"--"}, Command::kTrain, kUsage, {"'--'"}},
        ArgumentCase{{"--seed"}, Command::kTrain, kUsage, {"seed", "has no value", "--seed=value"}},
        ArgumentCase{{"--seed", "1", "2"}, Command::kTrain, kUsage, {"seed", "not a list"}},
        ArgumentCase{{"--seed=x"}, Command::kTrain, kUsage, {"seed = 'x' (the command line)"}},
        ArgumentCase{{"--prompt=hello"}, Command::kTrain, kUsage, {"fettle train does not use --prompt"}},
        ArgumentCase{{"--learning_rate=1"}, Command::kGenerate, kUsage, {"fettle generate does not use"}},
        ArgumentCase{{"--config"}, Command::kTrain, kUsage, {"--config"}},
        ArgumentCase{{"--train_file=[\"a\", 1]"}, Command::kTrain, kUsage, {"train_file", "JSON array", "./["}},
        ArgumentCase{
            {"--lora_target_modules=['q', 'v']"}, Command::kTrain, kUsage, {"lora_target_modules", "JSON array"}},
        ArgumentCase{{"--lora_modules_to_save=[a]"}, Command::kTrain, kUsage, {"lora_modules_to_save", "JSON array"}},
        ArgumentCase{{"--train_file=[\"\"]"}, Command::kTrain, kUsage, {"train_file", "empty item"}},
        ArgumentCase{{"--max_train_samples=0"}, Command::kTrain, kUsage, {"max_train_samples", "-1 or at least 1"}},
        ArgumentCase{{"--max_eval_samples=-2"}, Command::kTrain, kUsage, {"max_eval_samples", "-1 or at least 1"}},
        ArgumentCase{{"--preprocessing_num_workers=1000000"}, Command::kTrain, kUsage, {"at least 0 and at most 1024"}},
        ArgumentCase{{"--prompt=a\nb", "--max_new_tokens=a\nb"}, Command::kGenerate, kUsage, {"'a b'"}},
        ArgumentCase{{"--token=hf_secret"}, Command::kTrain, kUsage, {"token", "not available in this version"}},
        ArgumentCase{{"no/such/file.yaml"}, Command::kTrain, ExitCode::kNoInput, {"no/such/file.yaml"}},
        ArgumentCase{{FETTLE_SOURCE_DIR "/tests"}, Command::kTrain, ExitCode::kNoInput, {"folder"}}));

TEST(BadArguments, NeverShowATokensValue) {
  const Failure failure = failure_of([] { parse({"--token=hf_secret"}, Command::kTrain); });
  EXPECT_THAT(failure.text, Not(HasSubstr("hf_secret")));
}

TEST(BadFile, UnreadableIsAPermissionError) {
  const fs::path path = fs::path(testing::TempDir()) / "fettle_unreadable.yaml";
  std::ofstream(path) << "seed: 1\n";
  fs::permissions(path, fs::perms::none);
  if (std::ifstream(path).good()) GTEST_SKIP() << "this user may read every file";
  expect_failure(failure_of([&] { parse({path.string()}, Command::kTrain); }), ExitCode::kPermission, {path.string()});
  fs::remove(path);
}

TEST(BadFile, TooLargeIsRefusedBeforeReading) {
  const fs::path path = fs::path(testing::TempDir()) / "fettle_large.yaml";
  std::ofstream(path) << "#";
  fs::resize_file(path, uintmax_t{1} << 40);
  expect_failure(failure_of([&] { parse({path.string()}, Command::kTrain); }), kBad, {path.string(), "bytes"});
  fs::remove(path);
}

}  // namespace
}  // namespace fettle::config
