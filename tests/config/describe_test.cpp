// SPDX-License-Identifier: Apache-2.0
#include "config/describe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "config/aliases.h"
#include "config/parse.h"

namespace fettle::config {
namespace {

using Json = nlohmann::ordered_json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::vector<std::string> option_names() {
  std::vector<std::string> names;
  for (const Section& section : sections()) {
    for (const Option& option : section.options) names.emplace_back(option.name);
  }
  return names;
}

/// `value`; if the range does not reach so far, its end, or its middle where the end is the default.
template <typename Number>
Number within_range(const Range& range, Number value, Number default_value) {
  if (range.maximum && value > static_cast<Number>(*range.maximum)) {
    const auto most = static_cast<Number>(*range.maximum);
    return default_value == most ? (most + static_cast<Number>(range.minimum.value_or(0))) / 2 : most;
  }
  return range.minimum && value < static_cast<Number>(*range.minimum) ? static_cast<Number>(*range.minimum) : value;
}

/// Every option away from its default.
Config unusual() {
  struct Change {
    const Option& option;
    void operator()(bool* value) const { *value = !*value; }
    void operator()(int64_t* value) const { *value = within_range(option.range, *value + 3, *value); }
    void operator()(double* value) const {
      *value = option.name == "warmup_ratio" ? 1.0 / 3 : within_range(option.range, *value * 3 + 4, *value);
    }
    void operator()(std::optional<double>* value) const { *value = 0.1 + 0.2; }
    void operator()(std::string* value) const {
      if (option.text_format == TextFormat::kJsonObject) {
        *value = R"({"a":1.5,"b":"2","c":true})";
      } else if (option.text_format == TextFormat::kBytes) {
        *value = "2.5MB";
      } else if (!option.choices.empty()) {
        *value = option.choices.size() > 1 ? option.choices[1] : option.choices[0];
      } else {
        *value = "null: \"ä\\\n # 'x' \xF0\x9F\x98\x80";
      }
    }
    void operator()(std::vector<std::string>* value) const { *value = {"a b", "c,d", "~"}; }
  };
  Config config;
  for (const std::string& name : option_names()) {
    const Option& option = *find_option(name);
    if (option.range.maximum_excluded) continue;
    std::visit(Change{option}, option.slot(config));
  }
  return config;
}

TEST(ToJson, HasEveryOptionInOrder) {
  std::vector<std::string> keys;
  const Json values = to_json(Config{});
  for (const auto& [key, value] : values.items()) keys.push_back(key);
  EXPECT_EQ(keys, option_names());
}

TEST(ToJson, IsAConfigurationFileOfTheSameConfiguration) {
  for (const Config& config : {Config{}, unusual()}) {
    const std::string text = to_json(config).dump(2);
    EXPECT_EQ(to_json(parse_text(text, Syntax::kJson, "run.json").config), to_json(config));
    EXPECT_EQ(to_json(parse_text(text, Syntax::kYaml, "run.yaml").config), to_json(config));
  }
}

TEST(LogLines, ShowWhatDiffersAndIsUsed) {
  Config config;
  EXPECT_THAT(log_lines(config, Command::kTrain), IsEmpty());
  config.model.model_name_or_path = "m";
  config.training.learning_rate = 2e-4;
  config.training.max_steps = 5;
  config.generation.prompt = "not for training";
  EXPECT_THAT(log_lines(config, Command::kTrain),
              ElementsAre("model: model_name_or_path=\"m\"", "training: learning_rate=0.0002 max_steps=5"));
}

TEST(Schema, HasEveryKnownNameExactlyOnce) {
  const Json parsed = Json::parse(schema().dump());
  EXPECT_EQ(parsed["additionalProperties"], false);
  EXPECT_EQ(parsed["$schema"], "https://json-schema.org/draft/2020-12/schema");
  std::set<std::string> expected;
  for (const std::string& name : option_names()) expected.insert(name);
  for (const NameAlias& alias : name_aliases()) expected.emplace(alias.name);
  for (const IgnoredOption& option : ignored_options()) expected.emplace(option.name);
  for (const UnavailableOption& option : unavailable_options()) expected.emplace(option.name);
  std::set<std::string> found;
  for (const auto& [name, property] : parsed["properties"].items()) {
    EXPECT_TRUE(found.insert(name).second) << name;
    const bool is_option = find_option(name) != nullptr;
    EXPECT_EQ(property.contains("default"), is_option) << name;
    EXPECT_EQ(property.value("deprecated", false), !is_option) << name;
    EXPECT_TRUE(property.contains("description")) << name;
  }
  EXPECT_EQ(found, expected);
}

TEST(Schema, StatesTypesRangesAndChoices) {
  const Json properties = schema()["properties"];
  EXPECT_EQ(properties["lora_r"]["type"], Json({"integer", "null"}));
  EXPECT_EQ(properties["lora_r"]["minimum"], 1);
  EXPECT_EQ(properties["lora_r"]["default"], 16);
  EXPECT_EQ(properties["max_train_samples"]["anyOf"], Json::parse(R"([{"const": -1}, {"minimum": 1}])"));
  EXPECT_EQ(properties["lora_dropout"]["exclusiveMaximum"], 1);
  EXPECT_EQ(properties["lora_alpha"]["exclusiveMinimum"], 0);
  EXPECT_EQ(properties["packing"]["type"], Json({"boolean", "null"}));
  EXPECT_EQ(properties["train_file"]["type"], Json({"array", "string", "null"}));
  EXPECT_EQ(properties["save_strategy"]["enum"], Json({"no", "steps", "epoch", "false", false, nullptr}));
  EXPECT_EQ(properties["use_cpu"]["enum"], Json({"true", true, "false", false, nullptr}));
  EXPECT_EQ(properties["max_length"]["maximum"], properties["max_seq_length"]["maximum"]);
  EXPECT_FALSE(properties["prompt_template"].contains("enum"));
  EXPECT_EQ(properties["learning_rate"]["default"], nullptr);
}

TEST(Defaults, ParseBackToTheDefaults) {
  const Parsed parsed = parse_text(defaults(), Syntax::kYaml, "defaults.yaml");
  EXPECT_EQ(to_json(parsed.config), to_json(Config{}));
  EXPECT_THAT(parsed.notices, IsEmpty());
  for (const std::string& name : option_names()) EXPECT_THAT(defaults(), HasSubstr("\n" + name + ": "));
}

TEST(Help, ShowsTheCommandsOptionsOnly) {
  const std::string text = help_text(Command::kGenerate);
  EXPECT_THAT(text, HasSubstr("Usage: fettle generate"));
  EXPECT_THAT(text, HasSubstr("--max_new_tokens=128"));
  EXPECT_THAT(text, Not(HasSubstr("--learning_rate")));
}

TEST(Markdown, IsWhatTheRepositoryHolds) {
  EXPECT_TRUE(read_file(FETTLE_SOURCE_DIR "/docs/options.md") == markdown())
      << "docs/options.md is out of date: run `fettle config --markdown > docs/options.md`";
}

TEST(ConfigCommand, PrintsOneOfThree) {
  for (const char* what : {"--schema", "--defaults", "--markdown"}) {
    testing::internal::CaptureStdout();
    EXPECT_EQ(config_command({what}), 0);
    const std::string printed = testing::internal::GetCapturedStdout();
    EXPECT_TRUE(printed == defaults() || printed == markdown() || Json::parse(printed) == schema()) << what;
  }
  EXPECT_THROW(config_command({}), Error);
  EXPECT_THROW(config_command({"--all"}), Error);
}

}  // namespace
}  // namespace fettle::config
