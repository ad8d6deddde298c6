// SPDX-License-Identifier: Apache-2.0
#include "hub/dataset_files.h"

#include <gmock/gmock.h>

#include <map>

#include "hub/support.h"

namespace fettle::hub {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

using Paths = std::vector<std::string>;

std::vector<std::pair<std::string, Paths>> splits_of(const Paths& paths, const CardConfig& config = {}) {
  std::vector<std::pair<std::string, Paths>> found;
  for (const DatasetSplit& split : find_splits(paths, config)) found.emplace_back(split.name, split.paths);
  return found;
}

TEST(Glob, MatchesAsFsspecDoes) {
  for (const auto& [pattern, path] :
       std::vector<std::pair<const char*, const char*>>{{"a.csv", "a.csv"},
                                                        {"*.csv", "a.csv"},
                                                        {"*", "a"},
                                                        {"**", "a/b/c.csv"},
                                                        {"data/*", "data/a.csv"},
                                                        {"data/**", "data/x/y/a.csv"},
                                                        {"**/a.csv", "a.csv"},
                                                        {"**/a.csv", "x/y/a.csv"},
                                                        {"x/**/a.csv", "x/a.csv"},
                                                        {"x/**/a.csv", "x/y/z/a.csv"},
                                                        {"t?st-[0-9][0-9]*", "test-01.json"},
                                                        {"[!a]b", "xb"},
                                                        {"a**b", "a/x/b"},
                                                        {"[", "["},
                                                        {"*a*a*a*b", "aaaaaaaaaaaaaaaab"}}) {
    EXPECT_TRUE(matches_glob(pattern, path)) << pattern << " " << path;
  }
  for (const auto& [pattern, path] : std::vector<std::pair<const char*, const char*>>{
           {"*.csv", "x/a.csv"},
           {"data/*", "data/x/a.csv"},
           {"data/*", "data"},
           {"**/a.csv", "xa.csv"},
           {"x/**/a.csv", "xy/a.csv"},
           {"?", "/"},
           {"[a-c]", "d"},
           {"[!a]b", "ab"},
           {"a", ""},
           {"", "a"},
           {"*a*a*a*a*a*a*a*a*a*a*a*a*c", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"}}) {
    EXPECT_FALSE(matches_glob(pattern, path)) << pattern << " " << path;
  }
}

TEST(DatasetSplits, AreReadOffTheNames) {
  EXPECT_THAT(splits_of({"README.md", "data.json", ".hidden.json", "__x__/y.json"}),
              ElementsAre(Pair("train", ElementsAre("data.json"))));
  EXPECT_THAT(splits_of({"train.csv", "test.csv", "other.csv"}),
              ElementsAre(Pair("train", ElementsAre("train.csv")), Pair("test", ElementsAre("test.csv"))));
  EXPECT_THAT(
      splits_of({"my_dev_set.json", "training-1.json"}),
      ElementsAre(Pair("train", ElementsAre("training-1.json")), Pair("validation", ElementsAre("my_dev_set.json"))));
  EXPECT_THAT(splits_of({"constraint.json"}), ElementsAre(Pair("train", ElementsAre("constraint.json"))));
  EXPECT_THAT(
      splits_of({"data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet",
                 "data/odd-00000-of-00001-9a8b.parquet", "train.csv"}),
      ElementsAre(Pair("train", ElementsAre("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")),
                  Pair("odd", ElementsAre("data/odd-00000-of-00001-9a8b.parquet"))));
  EXPECT_THAT(splits_of({"en-train/a.json", "test/b.json", "train.json"}),
              ElementsAre(Pair("train", ElementsAre("en-train/a.json")), Pair("test", ElementsAre("test/b.json"))));
  EXPECT_THAT(splits_of({"a.zip", "README.md", "x.json.gz"}), IsEmpty());
}

TEST(DatasetSplits, KeepTheCommonestFormat) {
  EXPECT_THAT(splits_of({"a.json", "LICENSE.txt"}), ElementsAre(Pair("train", ElementsAre("a.json"))));
  EXPECT_THAT(splits_of({"a.JSON", "b.txt", "c.txt"}), ElementsAre(Pair("train", ElementsAre("b.txt", "c.txt"))));
  EXPECT_THAT(splits_of({"a.csv", "a.parquet"}), ElementsAre(Pair("train", ElementsAre("a.parquet"))));
}

TEST(DatasetSplits, FollowTheCard) {
  CardConfig config;
  config.data_dir = "./sub/";
  config.data_files = {{"train", {"b.json", "./*.json"}}, {"held", {"x/**"}}, {"none", {"absent*"}}};
  EXPECT_THAT(
      splits_of({"a.json", "sub/a.json", "sub/b.json", "sub/x/y/c.json"}, config),
      ElementsAre(Pair("train", ElementsAre("sub/b.json", "sub/a.json")), Pair("held", ElementsAre("sub/x/y/c.json"))));
}

TEST(DatasetCard, IsReadFromTheFrontMatter) {
  const auto configs = read_dataset_card(
      "---\r\nlicense: mit\r\nconfigs:\r\n- config_name: a\r\n  data_files: x.csv\r\n- config_name: b\r\n  default: "
      "true\r\n"
      "  data_dir: d\r\n- config_name: c\r\n  data_files:\r\n  - split: test\r\n    path: [p, q]\r\n---\r\n# Title\r\n",
      "s");
  ASSERT_EQ(configs.size(), 3U);
  EXPECT_THAT(configs[0].data_files, ElementsAre(Pair("train", ElementsAre("x.csv"))));
  EXPECT_TRUE(configs[1].is_default);
  EXPECT_EQ(configs[1].data_dir, "d");
  EXPECT_THAT(configs[1].data_files, IsEmpty());
  EXPECT_THAT(configs[2].data_files, ElementsAre(Pair("test", ElementsAre("p", "q"))));
}

TEST(DatasetCard, MayBeAbsent) {
  for (const char* text : {"", "# Title", "---\n", "---\nlicense: mit\n", "---\nlicense: mit\n---\n", "---\n- a\n---\n",
                           "---\nconfigs: 3\n---\n", "---\nconfigs: [1, x]\n---\n", "\n---\nconfigs: []\n---\n"}) {
    EXPECT_THAT(read_dataset_card(text, "s"), IsEmpty()) << text;
  }
  expect_error([] { read_dataset_card("---\na: [\n---\n", "dataset_name: x"); }, ExitCode::kData,
               "dataset_name: x: the front matter of README.md is not valid YAML");
  EXPECT_ANY_THROW(read_dataset_card("---\n" + std::string(20000, '[') + "\n---\n", "s"));
}

TEST(DatasetConfig, IsTheOnlyTheDefaultOrTheNamedOne) {
  const CardConfig a{"a", false, "", {}};
  const CardConfig b{"b", true, "", {}};
  const CardConfig standard{"default", false, "", {}};
  EXPECT_EQ(choose_config({}, "", "s").name, "");
  EXPECT_EQ(choose_config({a}, "", "s").name, "a");
  EXPECT_EQ(choose_config({a, b}, "", "s").name, "b");
  EXPECT_EQ(choose_config({a, standard}, "", "s").name, "default");
  EXPECT_EQ(choose_config({a, b}, "a", "s").name, "a");
  expect_error(
      [&] {
        choose_config({a, standard}, "x", "s");
      },
      ExitCode::kUsage, "no configuration 'x'; give one of these");
  expect_error([&] { choose_config({a, CardConfig{"c", false, "", {}}}, "", "s"); }, ExitCode::kUsage, "a, c");
  expect_error([] { choose_config({}, "x", "s"); }, ExitCode::kUsage, "remove dataset_config_name");
}

TEST(ConvertedConfigs, AreTheFoldersOfTheBranch) {
  const auto configs = converted_configs({"a/train/0001.parquet", "a/train/0000.parquet", "b/partial-test/0000.parquet",
                                          "README.md", "a/train/index.duckdb"});
  ASSERT_EQ(configs.size(), 2U);
  EXPECT_EQ(configs[0].name, "a");
  EXPECT_THAT(splits_of({"a/train/0001.parquet", "a/train/0000.parquet"}, configs[0])[0].second.size(), 2U);
  EXPECT_THAT(configs[1].data_files, ElementsAre(Pair("test", ElementsAre("b/partial-test/0000.parquet"))));
}

TEST(Shards, AreAllThereOrNot) {
  EXPECT_TRUE(has_all_shards({"a.json", "train-00000-of-00002.json", "train-00001-of-00002.json"}));
  EXPECT_TRUE(has_all_shards({"x-of-y.json", "-of-", "a-1-of-2.json"}));
  EXPECT_FALSE(has_all_shards({"train-00001-of-00002.json"}));
  EXPECT_FALSE(has_all_shards({"a/train-00000-of-00002-abc.json", "b/train-00001-of-00002-def.json"}));
}

}  // namespace
}  // namespace fettle::hub
