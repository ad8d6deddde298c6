// SPDX-License-Identifier: Apache-2.0
#include "config/parse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "config/aliases.h"
#include "config/describe.h"
#include "config/value.h"

namespace fettle::config {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

Parsed yaml(std::string_view text) {
  return parse_text(text, Syntax::kYaml, "c.yaml");
}
Parsed json(std::string_view text) {
  return parse_text(text, Syntax::kJson, "c.json");
}

/// A file in the test's own folder that is removed at the end.
class TemporaryFile {
 public:
  TemporaryFile(const std::string& name, std::string_view text) : path_(fs::path(testing::TempDir()) / name) {
    std::ofstream(path_) << text;
  }
  ~TemporaryFile() { fs::remove(path_); }
  [[nodiscard]] std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

const std::vector<std::string> kTrainArguments = {"--model_name_or_path=m", "--train_file=t.jsonl", "--output_dir=o"};

Parsed train(std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), kTrainArguments.begin(), kTrainArguments.end());
  return parse(arguments, Command::kTrain);
}

TEST(Parse, NumbersAsPeopleWriteThem) {
  EXPECT_EQ(yaml("learning_rate: 2e-4").config.training.learning_rate, 2e-4);
  EXPECT_EQ(yaml("learning_rate: 1E-5").config.training.learning_rate, 1e-5);
  EXPECT_EQ(yaml("learning_rate: '3e-4'").config.training.learning_rate, 3e-4);
  EXPECT_EQ(yaml("learning_rate: +.5").config.training.learning_rate, 0.5);
  EXPECT_EQ(yaml("max_steps: 1e+06").config.training.max_steps, 1000000);  // as Helm prints 1000000
  EXPECT_EQ(yaml("max_steps: 8.0").config.training.max_steps, 8);
  EXPECT_EQ(yaml("seed: 9223372036854775807").config.training.seed, INT64_MAX);
  EXPECT_EQ(json("{\"learning_rate\": 2e-4}").config.training.learning_rate, 2e-4);
}

TEST(Parse, BooleansAsPeopleWriteThem) {
  for (const char* word : {"true", "True", "TRUE", "yes", "on", "1"}) {
    EXPECT_TRUE(yaml(std::string("gradient_checkpointing: ") + word).config.training.gradient_checkpointing) << word;
  }
  for (const char* word : {"false", "False", "no", "Off", "0"}) {
    EXPECT_FALSE(yaml(std::string("packing: ") + word).config.data.packing) << word;
  }
}

TEST(Parse, NullIsTheDefaultAndIsNotGiven) {
  const Parsed parsed = yaml("learning_rate: null\nmax_steps: ~\noutput_dir:\nlora_target_modules: null");
  EXPECT_FALSE(parsed.config.training.learning_rate.has_value());
  EXPECT_EQ(parsed.config.training.max_steps, -1);
  EXPECT_THAT(parsed.config.lora.lora_target_modules, ElementsAre("all-linear"));
  EXPECT_THAT(parsed.given, IsEmpty());
  EXPECT_EQ(yaml("output_dir: 'null'").config.output.output_dir, "null");
}

TEST(Parse, TheWordNoStaysAChoice) {
  EXPECT_EQ(yaml("save_strategy: no").config.training.save_strategy, "no");
  EXPECT_EQ(json("{\"save_strategy\": false}").config.training.save_strategy, "no");
  EXPECT_EQ(yaml("resume_from_checkpoint: true").config.output.resume_from_checkpoint, "auto");
  EXPECT_EQ(yaml("resume_from_checkpoint: o/checkpoint-5").config.output.resume_from_checkpoint, "o/checkpoint-5");
}

TEST(Parse, ListsInEveryForm) {
  const auto targets = [](const std::string& text) { return yaml(text).config.lora.lora_target_modules; };
  EXPECT_THAT(targets("lora_target_modules: [q_proj, v_proj]"), ElementsAre("q_proj", "v_proj"));
  EXPECT_THAT(targets("lora_target_modules:\n- q_proj\n- v_proj"), ElementsAre("q_proj", "v_proj"));
  EXPECT_THAT(targets("lora_target_modules: q_proj v_proj"), ElementsAre("q_proj", "v_proj"));
  EXPECT_THAT(targets("lora_target_modules: 'q_proj,v_proj, k_proj'"), ElementsAre("q_proj", "v_proj", "k_proj"));
  EXPECT_THAT(targets("lora_target_modules: '.*\\.(q|v)_proj{1,2} x'"), ElementsAre(".*\\.(q|v)_proj{1,2} x"));
  EXPECT_THAT(yaml("train_file: my data/a.jsonl, b.jsonl").config.data.train_file,
              ElementsAre("my data/a.jsonl", "b.jsonl"));
  EXPECT_THAT(train({"--lora_target_modules", "q_proj", "v_proj"}).config.lora.lora_target_modules,
              ElementsAre("q_proj", "v_proj"));
}

TEST(Parse, ListsAsJsonOnTheCommandLine) {
  const Config config = train({"--validation_file=[\"a,b.jsonl\", \"c.jsonl\"]", "--lora_target_modules=[\"q_proj\"]",
                               "--lora_modules_to_save= [ ] "})
                            .config;
  EXPECT_THAT(config.data.validation_file, ElementsAre("a,b.jsonl", "c.jsonl"));
  EXPECT_THAT(config.lora.lora_target_modules, ElementsAre("q_proj"));
  EXPECT_THAT(config.lora.lora_modules_to_save, IsEmpty());
  EXPECT_THAT(train({"--lora_target_modules=[qv]_proj"}).config.lora.lora_target_modules, ElementsAre("[qv]_proj"));
  EXPECT_THAT(train({"--validation_file=./[1].jsonl"}).config.data.validation_file, ElementsAre("./[1].jsonl"));
}

TEST(Parse, SchedulerParametersAsMapOrText) {
  const std::string expected = R"({"mode":"min","num_cycles":2,"rate":0.5,"warm":true})";
  const auto kwargs = [](const Parsed& parsed) { return parsed.config.training.lr_scheduler_kwargs; };
  EXPECT_EQ(kwargs(yaml("lr_scheduler_kwargs: {num_cycles: 2, mode: min, rate: .5, warm: true}")), expected);
  EXPECT_EQ(kwargs(yaml("lr_scheduler_kwargs: '" + expected + "'")), expected);
  EXPECT_EQ(kwargs(json("{\"lr_scheduler_kwargs\": " + expected + "}")), expected);
  EXPECT_EQ(kwargs(yaml("lr_scheduler_kwargs: {a: '2', b: ~}")), R"({"a":"2","b":null})");
  EXPECT_EQ(kwargs(json("{\"lr_scheduler_kwargs\": {\"b\": null}, \"seed\": 1}")), R"({"b":null})");
  EXPECT_EQ(kwargs(yaml("lr_scheduler_kwargs: {}")), "");
}

TEST(Parse, YamlAndJsonAreEqual) {
  const Parsed from_yaml = yaml("model_name_or_path: Größe\nlora_r: 8\ntrain_file: [a, b]\npacking: false\n");
  const Parsed from_json = json(
      "{\"model_name_or_path\": \"Gr\\u00f6\\u00dfe\", \"lora_r\": 8, \"train_file\": [\"a\", \"b\"], \"packing\": "
      "false}");
  EXPECT_EQ(to_json(from_yaml.config), to_json(from_json.config));
  EXPECT_EQ(json(R"({"prompt_with_input": "\ud83d\ude00"})").config.data.prompt_with_input, "😀");
}

TEST(Parse, ToleratesByteOrderMarkCarriageReturnsAndNothing) {
  EXPECT_EQ(yaml("\xEF\xBB\xBFseed: 7\r\nmax_steps: 3\r\n").config.training.seed, 7);
  EXPECT_EQ(json("\xEF\xBB\xBF{\r\n\"seed\": 7}\r\n").config.training.seed, 7);
  for (const char* nothing : {"", "\n", "# only a comment\n", "---\n", "{}"}) {
    EXPECT_THAT(yaml(nothing).given, IsEmpty()) << nothing;
  }
  EXPECT_THAT(json("").given, IsEmpty());
}

TEST(Parse, TheCommandLineWinsAndTheLastOfItsEquals) {
  const TemporaryFile file("fettle_precedence.yaml", "seed: 1\nlora_r: 4\n");
  const Parsed parsed = train({file.path(), "--seed=2", "--seed", "3"});
  EXPECT_EQ(parsed.config.training.seed, 3);
  EXPECT_EQ(parsed.config.lora.lora_r, 4);
  EXPECT_EQ(parsed.given.at("seed"), "the command line");
  EXPECT_EQ(parsed.given.at("lora_r"), file.path() + ":2");
  EXPECT_EQ(train({"--config", file.path()}).config.lora.lora_r, 4);
}

TEST(Parse, TheFilesEndingDecidesItsSyntax) {
  const TemporaryFile file("fettle_syntax.json", "{\"seed\": 5}");
  EXPECT_EQ(train({file.path()}).config.training.seed, 5);
}

TEST(Parse, ArgumentForms) {
  EXPECT_TRUE(train({"--gradient_checkpointing"}).config.training.gradient_checkpointing);
  EXPECT_FALSE(train({"--packing", "False"}).config.data.packing);
  EXPECT_EQ(train({"--max-steps", "-1"}).config.training.max_steps, -1);
  EXPECT_EQ(train({"--prompt_with_input=a=b --c"}).config.data.prompt_with_input, "a=b --c");
  EXPECT_EQ(train({"--prompt_with_input="}).config.data.prompt_with_input, "");
  EXPECT_EQ(train({"--learning_rate=null"}).config.training.learning_rate, std::nullopt);
}

TEST(Parse, AFileMayServeSeveralCommands) {
  const TemporaryFile file("fettle_shared.yaml", "model_name_or_path: m\nlearning_rate: 1e-4\nprompt: Hello\n");
  EXPECT_EQ(parse({file.path()}, Command::kGenerate).config.generation.prompt, "Hello");
}

TEST(Aliases, EveryPlainAliasSetsItsOption) {
  for (const NameAlias& alias : name_aliases()) {
    if (!alias.values.empty()) continue;
    const Option& option = *find_option(alias.option);
    const bool is_number = type_name(option) == "integer" || type_name(option) == "number";
    const std::string value = type_name(option) == "boolean" ? "false"
                              : is_number                    ? "3"
                              : option.choices.empty()       ? "x"
                                                             : "no";
    const std::string place = option.name == "prompt_template" ? "./x" : value;
    const Parsed parsed = yaml(std::string(alias.name) + ": " + place);
    const Parsed direct = yaml(std::string(alias.option) + ": " + place);
    EXPECT_EQ(to_json(parsed.config), to_json(direct.config)) << alias.name;
    ASSERT_THAT(parsed.notices, SizeIs(1)) << alias.name;
    EXPECT_THAT(parsed.notices[0],
                HasSubstr(std::string(alias.name) + " (c.yaml:1) is called " + std::string(alias.option)));
    EXPECT_TRUE(parsed.given.contains(std::string(alias.option)));
  }
}

TEST(Aliases, ShortNamesAreDownloadsOwn) {
  const std::vector<std::string> arguments = {"--model=m", "--dataset", "d", "--split=train[:9]"};
  const Parsed parsed = parse(arguments, Command::kDownload);
  EXPECT_THAT(parsed.notices, IsEmpty());
  EXPECT_EQ(parsed.config.model.model_name_or_path, "m");
  EXPECT_EQ(parsed.config.data.dataset_split, "train[:9]");
  EXPECT_THAT(train({"--model=n"}).notices, SizeIs(1));
}

TEST(Aliases, ValuesAreTranslated) {
  EXPECT_EQ(yaml("use_cpu: true").config.device.device, "cpu");
  EXPECT_EQ(yaml("no_cuda: True").config.device.device, "cpu");
  EXPECT_EQ(yaml("use_habana: true").config.device.device, "hpu");
  EXPECT_THAT(yaml("no_cuda: false\nuse_cpu: false").given, IsEmpty());
  EXPECT_TRUE(yaml("torch_dtype: bfloat16").config.training.bf16);
  EXPECT_FALSE(yaml("dtype: float32").config.training.bf16);
  EXPECT_EQ(yaml("dtype: float32").notices, std::vector<std::string>{"dtype (c.yaml:1) is called bf16 here: false"});
  EXPECT_EQ(yaml("optim: adamw_torch_fused").config.training.optim, "adamw");
  EXPECT_EQ(yaml("use_cpu: true\nno_cuda: true").config.device.device, "cpu");
  EXPECT_FALSE(train({"--use_lora", "false"}).config.lora.use_peft);
  EXPECT_EQ(train({"--use_cpu"}).config.device.device, "cpu");
}

TEST(Aliases, IgnoredOptionsAreSaidOnce) {
  for (const IgnoredOption& option : ignored_options()) {
    const Parsed parsed = yaml(std::string(option.name) + ": true");
    EXPECT_EQ(to_json(parsed.config), to_json(Config{}));
    ASSERT_THAT(parsed.notices, SizeIs(1)) << option.name;
    EXPECT_THAT(parsed.notices[0], HasSubstr("has no effect"));
    EXPECT_THAT(parsed.notices[0], HasSubstr(std::string(option.name)));
  }
  EXPECT_THAT(train({"--trust_remote_code", "--trust_remote_code"}).notices, SizeIs(1));
}

TEST(Aliases, UnavailableOptionsAreAcceptedOnlyWhenOff) {
  for (const UnavailableOption& option : unavailable_options()) {
    for (const char* off : {"false", "none", "~", "''", "0", "[]", "{}", "-1"}) {
      EXPECT_THAT(yaml(std::string(option.name) + ": " + off).notices, SizeIs(1)) << option.name << off;
    }
    EXPECT_ANY_THROW(yaml(std::string(option.name) + ": something")) << option.name;
    EXPECT_ANY_THROW(train({"--" + std::string(option.name)})) << option.name;
  }
}

TEST(Values, SizesInTheUnitsOfTransformers) {
  const std::vector<std::pair<const char*, int64_t>> sizes = {
      {"5GB", 5'000'000'000}, {"5 GB", 5'000'000'000}, {"1.5mb", 1'500'000}, {"0.5KB", 500}, {"2TB", 2'000'000'000'000},
      {"1GiB", 1 << 30},      {"200MiB", 209'715'200}, {"4kib", 4096},       {"12B", 12},    {"123", 123}};
  for (const auto& [text, bytes] : sizes) EXPECT_EQ(parse_bytes(text), bytes) << text;
  for (const char* bad : {"", "GB", "5 gallons", "-1GB", "0", "0GB", "nan", "inf", "1e30TB", "5GB5", "5K"}) {
    EXPECT_FALSE(parse_bytes(bad).has_value()) << bad;
  }
}

TEST(Values, NearestName) {
  EXPECT_EQ(nearest("lr", {"learning_rate", "lora_r"}), "");
  EXPECT_EQ(nearest("learing_rate", {"lora_r", "learning_rate"}), "learning_rate");
  EXPECT_EQ(nearest(std::string(100000, 'x'), {"lora_r"}), "");
}

}  // namespace
}  // namespace fettle::config
