// SPDX-License-Identifier: Apache-2.0
#include "config/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "config/describe.h"
#include "config/parse.h"

namespace fettle::config {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::string_view kTrainMinimum = "model_name_or_path: m\ntrain_file: t.jsonl\noutput_dir: o\n";
constexpr std::string_view kGenerateMinimum = "model_name_or_path: m\nprompt: Hello\n";

struct Case {
  Command command;
  std::string text;
  ExitCode code;
  std::vector<std::string> parts;
};

class Contradiction : public testing::TestWithParam<Case> {};

TEST_P(Contradiction, IsRefused) {
  const Case& bad = GetParam();
  Parsed parsed = parse_text(bad.text, Syntax::kYaml, "c.yaml");
  try {
    validate(parsed, bad.command);
    FAIL() << "accepted: " << bad.text;
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(bad.code)) << error.what();
    const std::string text = std::string(error.what()) + "; " + error.hint();
    for (const std::string& part : bad.parts) EXPECT_THAT(text, HasSubstr(part));
  }
}

Case missing(Command command, const std::string& text, const std::string& what) {
  return {command, text, ExitCode::kUsage, {"needs " + what}};
}

Case train(const std::string& text, std::vector<std::string> parts) {
  return {Command::kTrain, std::string(kTrainMinimum) + text, ExitCode::kConfig, std::move(parts)};
}

Case generate(const std::string& text, std::vector<std::string> parts) {
  return {Command::kGenerate, std::string(kGenerateMinimum) + text, ExitCode::kConfig, std::move(parts)};
}

INSTANTIATE_TEST_SUITE_P(
    Missing, Contradiction,
    testing::Values(missing(Command::kTrain, "train_file: t\noutput_dir: o", "model_name_or_path"),
                    missing(Command::kTrain, "model_name_or_path: m\noutput_dir: o", "train_file or dataset_name"),
                    missing(Command::kTrain, "model_name_or_path: m\ntrain_file: t", "output_dir"),
                    missing(Command::kEval, "model_name_or_path: m", "validation_file"),
                    missing(Command::kEval, "model_name_or_path: m\ntrain_file: t", "validation_file"),
                    missing(Command::kGenerate, "model_name_or_path: m", "prompt"),
                    missing(Command::kPreprocess, "model_name_or_path: m", "train_file"),
                    missing(Command::kPreprocess, "train_file: t", "tokenizer_name or model_name_or_path")));

INSTANTIATE_TEST_SUITE_P(
    Train, Contradiction,
    testing::Values(
        train("max_steps: 5\nnum_train_epochs: 2", {"max_steps (c.yaml:4)", "num_train_epochs (c.yaml:5)", "exclude"}),
        train("warmup_steps: 5\nwarmup_ratio: 0.1", {"warmup_steps", "warmup_ratio"}),
        train("dataset_name: d", {"train_file", "dataset_name"}),
        train("validation_file: v\nvalidation_split_percentage: 5", {"validation_split_percentage"}),
        train("use_peft: false\nlora_r: 8", {"lora_r (c.yaml:5)", "use_peft is false"}),
        train("use_peft: false\nlora_target_modules: q_proj", {"lora_target_modules"}),
        train("use_peft: false\nadapter_name_or_path: a", {"adapter_name_or_path", "full fine-tuning"}),
        train("adapter_name_or_path: a\nlora_r: 64", {"lora_r (c.yaml:5)", "adapter_name_or_path is given"}),
        train("adapter_name_or_path: a\nlora_alpha: 64", {"lora_alpha"}),
        train("adapter_name_or_path: a\nlora_target_modules: q_proj", {"lora_target_modules"}),
        train("adapter_name_or_path: a\nlora_exclude_modules: q_proj", {"lora_exclude_modules"}),
        train("adapter_name_or_path: a\nlora_modules_to_save: lm_head", {"lora_modules_to_save"}),
        train("adapter_name_or_path: a\nuse_rslora: true", {"use_rslora"}),
        train("max_shard_size: 1GB", {"max_shard_size", "adapter"}),
        train("eval_steps: 5", {"eval_steps (c.yaml:4)", "eval_strategy is no"}),
        train("eval_strategy: epoch\nvalidation_file: v\neval_steps: 5", {"eval_strategy is epoch"}),
        train("save_strategy: no\nsave_steps: 5", {"save_steps", "save_strategy is no"}),
        train("save_strategy: no\nsave_total_limit: 5", {"save_total_limit"}),
        train("eval_strategy: steps", {"no evaluation records", "validation_file"}),
        train("eval_strategy: steps\nvalidation_file: v\ndo_eval: false", {"do_eval is false"}),
        train("do_train: false\ndo_eval: false", {"do_train and do_eval"}),
        train("lr_scheduler_type: constant\nwarmup_steps: 5", {"warmup_steps", "constant"}),
        train("lr_scheduler_type: linear\nlr_scheduler_kwargs: {a: 1}", {"lr_scheduler_kwargs", "linear"}),
        train("lr_scheduler_type: greedy", {"greedy", "eval_strategy"}),
        train("packing: false\npacking_strategy: bfd_split", {"packing_strategy", "packing is false"}),
        train("lr_scheduler_type: reduce_lr_on_plateau", {"reduce_lr_on_plateau", "eval_strategy"}),
        train("completion_only_loss: false\nmask_history: true", {"mask_history", "completion_only_loss"}),
        train("prompt_template: none\nprompt_with_input: x", {"prompt_with_input", "prompt_template is none"})));

INSTANTIATE_TEST_SUITE_P(Generate, Contradiction,
                         testing::Values(generate("temperature: 0.7", {"temperature", "do_sample is false"}),
                                         generate("top_k: 5", {"top_k"}), generate("top_p: 0.5", {"top_p"}),
                                         generate("raw_prompt: true\nsystem_prompt: x", {"system_prompt"})));

std::vector<std::string> notices_of(Command command, const std::string& text) {
  Parsed parsed = parse_text(text, Syntax::kYaml, "c.yaml");
  validate(parsed, command);
  return parsed.notices;
}

TEST(Validate, AcceptsWhatIsConsistent) {
  const std::string base(kTrainMinimum);
  for (const char* text :
       {"", "max_steps: 5", "num_train_epochs: 1",
        "validation_split_percentage: 5\neval_strategy: steps\neval_steps: 5", "use_peft: false\nmax_shard_size: 1GB",
        "adapter_name_or_path: a\nlora_dropout: 0.1", "lr_scheduler_type: constant",
        "lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {power: 2}"}) {
    EXPECT_THAT(notices_of(Command::kTrain, base + text), IsEmpty()) << text;
  }
  EXPECT_THAT(notices_of(Command::kGenerate, "model_name_or_path: m\nprompt: p\ndo_sample: true\ntop_k: 5"), IsEmpty());
  EXPECT_THAT(notices_of(Command::kEval, "model_name_or_path: m\nvalidation_file: v"), IsEmpty());
  EXPECT_THAT(notices_of(Command::kPreprocess, "model_name_or_path: m\ntrain_file: v"), IsEmpty());
  EXPECT_THAT(notices_of(Command::kPreprocess, "tokenizer_name: t\ntrain_file: v"), IsEmpty());
}

TEST(Validate, LooksOnlyAtOptionsOfTheCommand) {
  EXPECT_THAT(notices_of(Command::kTrain, std::string(kTrainMinimum) + "temperature: 0.5"), IsEmpty());
  EXPECT_THAT(notices_of(Command::kGenerate, std::string(kGenerateMinimum) + "eval_steps: 5"), IsEmpty());
}

/// The file's options as if `arguments` had come from the command line.
Parsed with_arguments(const std::string& text, const std::vector<std::string>& arguments) {
  Parsed parsed = parse_text(text, Syntax::kYaml, "c.yaml");
  for (const std::string& name : arguments) parsed.given.at(name) = kCommandLine;
  validate(parsed, Command::kTrain);
  return parsed;
}

TEST(Validate, TheCommandLineReplacesTheFilesAlternative) {
  const Parsed steps = with_arguments(std::string(kTrainMinimum) + "num_train_epochs: 5\nmax_steps: 7", {"max_steps"});
  EXPECT_EQ(steps.config.training.max_steps, 7);
  EXPECT_EQ(steps.config.training.num_train_epochs, Config{}.training.num_train_epochs);
  EXPECT_THAT(steps.notices, ElementsAre("num_train_epochs (c.yaml:4) is replaced by max_steps (the command line)"));
  const Parsed epochs =
      with_arguments(std::string(kTrainMinimum) + "num_train_epochs: 5\nmax_steps: 7", {"num_train_epochs"});
  EXPECT_EQ(epochs.config.training.max_steps, -1);
  EXPECT_EQ(epochs.config.training.num_train_epochs, 5);
}

// max_steps: -1 asks for nothing, num_train_epochs: 3 asks for three epochs even though that is the default.
TEST(Validate, AnArgumentThatIsTheDefaultStillReplacesTheFilesAlternative) {
  const Parsed epochs =
      with_arguments(std::string(kTrainMinimum) + "num_train_epochs: 3\nmax_steps: 7", {"num_train_epochs"});
  EXPECT_EQ(epochs.config.training.max_steps, -1);
  const Parsed steps = with_arguments(std::string(kTrainMinimum) + "num_train_epochs: 5\nmax_steps: -1", {"max_steps"});
  EXPECT_EQ(steps.config.training.num_train_epochs, 5);
}

// The defaults file and a run's saved configuration name every option, so most pairs of alternatives are in them.
TEST(Validate, AcceptsFilesOfAllOptions) {
  for (const std::string& text : {defaults(), to_json(Config{}).dump(1)}) {
    Parsed parsed = parse_text(text, Syntax::kYaml, "c.yaml");
    parsed.config.model.model_name_or_path = "m";
    parsed.config.data.train_file = {"t.jsonl"};
    parsed.config.data.validation_file = {"v.jsonl"};
    parsed.config.output.output_dir = "o";
    parsed.config.generation.prompt = "Hello";
    for (const Command command : {Command::kTrain, Command::kEval, Command::kGenerate, Command::kPreprocess}) {
      validate(parsed, command);
    }
    EXPECT_THAT(parsed.notices, IsEmpty());
  }
}

TEST(Validate, TheCommandLineMayMakeTheFilesOptionsIdle) {
  const Parsed full = with_arguments(std::string(kTrainMinimum) + "lora_r: 4\nuse_peft: false", {"use_peft"});
  EXPECT_THAT(full.notices, ElementsAre("lora_r (c.yaml:4) has no effect: use_peft is false"));
  EXPECT_EQ(full.config.lora.lora_r, Config{}.lora.lora_r) << "a model card would claim it was used";
  EXPECT_THROW(with_arguments(std::string(kTrainMinimum) + "lora_r: 4\nuse_peft: false", {"lora_r"}), Error);
}

}  // namespace
}  // namespace fettle::config
