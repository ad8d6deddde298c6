// SPDX-License-Identifier: Apache-2.0
/// PEFT's rules for names.
#include "model/lora_targets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace fettle::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

ModuleNames modules() {
  ModuleNames names;
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    for (const char* name : {"self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"}) {
      names.linear.push_back(layer + name);
    }
    names.other.push_back(layer + "input_layernorm");
  }
  names.head = "lm_head";
  names.other.insert(names.other.begin(), "model.embed_tokens");
  names.other.emplace_back("model.norm");
  return names;
}

LoraTargets select(const std::vector<std::string>& target, const std::vector<std::string>& exclude = {},
                   const std::vector<std::string>& save = {}) {
  hub::AdapterConfig config;
  config.target_modules = module_selection(target);
  config.exclude_modules = module_selection(exclude);
  config.modules_to_save = save;
  return select_targets(modules(), config);
}

TEST(LoraTargets, AllLinearLeavesTheHeadOut) {
  for (const char* spelling : {"all-linear", "All-Linear"}) {
    const LoraTargets targets = select({spelling});
    EXPECT_EQ(targets.adapted, modules().linear);
    EXPECT_THAT(targets.leaf_names(), ElementsAre("q_proj", "v_proj", "up_proj"));
  }
}

TEST(LoraTargets, NamesMatchWholeEndings) {
  EXPECT_THAT(select({"q_proj", "v_proj"}).adapted,
              ElementsAre("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj",
                          "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"));
  EXPECT_THAT(select({"self_attn.q_proj"}).adapted, SizeIs(2));
  EXPECT_THAT(select({"model.layers.1.mlp.up_proj"}).adapted, ElementsAre("model.layers.1.mlp.up_proj"));
  EXPECT_THAT(select({"q_proj"}).counts, ElementsAre(std::pair<std::string, int64_t>("q_proj", 2)));
}

TEST(LoraTargets, OneEntryWithPatternCharactersMustMatchTheWholeName) {
  EXPECT_THAT(select({R"(.*\.1\.(self_attn\.q|mlp\.up)_proj)"}).adapted,
              ElementsAre("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"));
  EXPECT_THROW(select({"(q|v)_proj"}), Error);
}

TEST(LoraTargets, ExcludesByNameOrPattern) {
  EXPECT_THAT(select({"all-linear"}, {"up_proj"}).adapted, SizeIs(4));
  EXPECT_THAT(select({"all-linear"}, {R"(.*\.0\..*)"}).adapted, SizeIs(3));
}

TEST(LoraTargets, SavedModulesEndWithTheNameAndGetNoLora) {
  EXPECT_THAT(select({"q_proj"}, {}, {"lm_head", "embed_tokens"}).saved, ElementsAre("lm_head", "model.embed_tokens"));
  EXPECT_THAT(select({"q_proj"}, {}, {"norm"}).saved,  // as PEFT: without a dot before
              ElementsAre("model.layers.0.input_layernorm", "model.layers.1.input_layernorm", "model.norm"));
  const LoraTargets targets = select({"all-linear"}, {}, {"up_proj"});
  EXPECT_THAT(targets.saved, SizeIs(2));
  EXPECT_THAT(targets.adapted, SizeIs(4));
}

struct RefusedTargets {
  std::vector<std::string> target;
  std::vector<std::string> exclude;
  std::vector<std::string> save;
  const char* message;
};

TEST(LoraTargets, RefusesWhatWouldSilentlyTrainLess) {
  const std::vector<RefusedTargets> table{
      {{"q_proj", "vproj"}, {}, {}, "'vproj' matches no layer"},  // the typo of the old charts
      {{"roj"}, {}, {}, "'roj' matches no layer"},
      {{""}, {}, {}, "matches no layer"},
      {{}, {}, {}, "matches no layer"},
      {{".*x_proj"}, {}, {}, "matches no layer"},
      {{"(q_proj"}, {}, {}, "not a regular expression"},
      {{"all-linear"}, {".*"}, {}, "matches no layer"},
      {{"lm_head"}, {}, {}, "cannot be put on 'lm_head'"},
      {{"embed_tokens"}, {}, {}, "cannot be put on 'model.embed_tokens'"},
      {{".*norm"}, {}, {}, "cannot be put on"},
      {{"q_proj"}, {}, {"classifier"}, "'classifier' is no module"},
  };
  for (const RefusedTargets& refused : table) {
    SCOPED_TRACE(refused.message);
    try {
      select(refused.target, refused.exclude, refused.save);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kConfig);
      EXPECT_THAT(error.what(), HasSubstr(refused.message));
    }
  }
}

TEST(LoraTargets, AnExclusionThatExcludesNothingIsRefused) {
  const auto message = [](const std::vector<std::string>& exclude) -> std::string {
    try {
      require_exclusions_match(modules(), module_selection(exclude));
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kConfig);
      return error.what();
    }
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({"v_proj", "lm_head"}), "");
  EXPECT_EQ(message({R"(.*\.1\..*)"}), "");
  EXPECT_THAT(message({"v_proj", "vproj"}), HasSubstr("'vproj' matches no layer"));
  EXPECT_THAT(message({R"(layers\.1\..*)"}), HasSubstr("matches no layer's full name"));
  EXPECT_THAT(message({"All-Linear"}), HasSubstr("all-linear"));
}

TEST(LoraTargets, ListsTheNamesThereAre) {
  try {
    select({"vproj"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.hint(), HasSubstr("q_proj, v_proj, up_proj"));
  }
}

}  // namespace
}  // namespace fettle::model
