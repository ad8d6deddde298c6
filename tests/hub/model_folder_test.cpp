// SPDX-License-Identifier: Apache-2.0
#include "hub/model_folder.h"

#include <gmock/gmock.h>

#include <cstdlib>
#include <optional>

#include "hub/support.h"

namespace fettle::hub {
namespace {

namespace fs = std::filesystem;

const fs::path kStories = fs::path(FETTLE_SOURCE_DIR) / "examples/stories260K";
const fs::path kLlamaGguf = fs::path(FETTLE_SOURCE_DIR) / "tests/data/gguf/llama.gguf";

/// Sets or clears environment variables for one test.
class Environment {
 public:
  ~Environment() {
    for (const auto& [name, value] : before_) {
      value ? ::setenv(name.c_str(), value->c_str(), 1) : ::unsetenv(name.c_str());
    }
  }
  void set(const std::string& name, const std::string& value) {
    remember(name);
    ::setenv(name.c_str(), value.c_str(), 1);
  }
  void clear(const std::string& name) {
    remember(name);
    ::unsetenv(name.c_str());
  }

 private:
  void remember(const std::string& name) {
    const char* value = std::getenv(name.c_str());
    before_.emplace_back(name, value == nullptr ? std::nullopt : std::optional<std::string>(value));
  }
  std::vector<std::pair<std::string, std::optional<std::string>>> before_;
};

config::ModelConfig model_named(const std::string& name) {
  config::ModelConfig model;
  model.model_name_or_path = name;
  return model;
}

class HubCache : public testing::Test {
 protected:
  HubCache() {
    for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"}) {
      environment_.clear(name);
    }
    environment_.set("HF_HUB_OFFLINE", "1");
  }

  /// A snapshot of org/model in the hub cache `cache`.
  void add_snapshot(const std::string& cache, const std::string& commit, const std::string& branch) const {
    const std::string repository = cache + "/models--org--model/";
    folder_.write(repository + "snapshots/" + commit + "/config.json", R"({"model_type": "llama"})");
    if (!branch.empty()) folder_.write(repository + "refs/" + branch, commit + "\n");
  }
  void expect_found(const config::ModelConfig& model, const std::string& expected) const {
    EXPECT_EQ(resolve_model(model).path, folder_ / expected);
  }

  TemporaryFolder folder_;
  Environment environment_;
};

TEST(ResolveModel, ReadsALocalFolder) {
  const ModelFolder model = resolve_model(model_named(kStories.string()));
  EXPECT_EQ(model.path, kStories);
  EXPECT_FALSE(model.is_gguf);
  EXPECT_EQ(model.config["model_type"], "llama");
  EXPECT_TRUE(model.generation_config.contains("eos_token_id"));
  EXPECT_EQ(model.tokenizer_folder, kStories);
  EXPECT_NE(model.open_weights().find("model.embed_tokens.weight"), nullptr);
}

TEST(ResolveModel, ReadsAGgufFileWithATokenizerFromElsewhere) {
  auto given = model_named(kLlamaGguf.string());
  expect_error([&] { resolve_model(given); }, ExitCode::kNoInput, "the folder of the original model's tokenizer");
  given.tokenizer_name = kStories.string();
  const ModelFolder model = resolve_model(given);
  EXPECT_TRUE(model.is_gguf);
  EXPECT_EQ(model.config["hidden_size"], 32);
  EXPECT_TRUE(model.generation_config.is_object());
  EXPECT_EQ(model.tokenizer_folder, kStories);
  EXPECT_NE(model.open_weights().find("model.layers.0.mlp.down_proj.weight"), nullptr);
}

TEST(ResolveModel, FindsATokenizerBesideAGgufFile) {
  const TemporaryFolder folder;
  fs::copy_file(kLlamaGguf, folder / "m.gguf");
  folder.write("tokenizer.model", "");
  EXPECT_EQ(resolve_model(model_named((folder / "m.gguf").string())).tokenizer_folder, folder.path());
}

TEST(ResolveModel, TakesConfigAndTokenizerFromOtherFolders) {
  const TemporaryFolder folder;
  folder.write("config.json", R"({"model_type": "other"})");
  auto given = model_named(kStories.string());
  given.config_name = folder.path().string();
  given.tokenizer_name = folder.path().string();
  const ModelFolder model = resolve_model(given);
  EXPECT_EQ(model.config["model_type"], "other");
  EXPECT_EQ(model.tokenizer_folder, folder.path());
}

TEST(ResolveModel, TakesAnEmptyGenerationConfigWhereThereIsNone) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  EXPECT_EQ(resolve_model(model_named(folder.path().string())).generation_config, nlohmann::json::object());
}

TEST(ResolveModel, SaysWhatIsWrongWithAFolder) {
  const TemporaryFolder folder;
  const auto refuse = [&](ExitCode code, const std::string& fragment) {
    expect_error([&] { resolve_model(model_named(folder.path().string())); }, code, fragment);
  };
  refuse(ExitCode::kNoInput, "has no config.json; give the folder of a model");
  folder.write("x.gguf", "");
  refuse(ExitCode::kNoInput, "give the file itself: " + (folder / "x.gguf").string());
  folder.write("adapter_config.json", "{}");
  refuse(ExitCode::kNoInput, "this is a LoRA adapter: give it as adapter_name_or_path");
  folder.write("config.json", "{");
  refuse(ExitCode::kData, "config.json: not valid JSON at byte 2");
  folder.write("config.json", "[1]");
  refuse(ExitCode::kData, "config.json: a JSON object is expected, found array");
  folder.write("config.json", "{\"a\":" + std::string(200, '['));
  refuse(ExitCode::kData, "config.json: JSON nested deeper than 64 levels");
  folder.write("config.json", std::string(64'000'001, ' '));
  refuse(ExitCode::kData, "64000001 bytes are more than a configuration file can have");
}

TEST(ResolveModel, RefusesNamesThatAreNothing) {
  Environment environment;
  environment.set("HF_HUB_OFFLINE", "1");
  expect_error([] { resolve_model({}); }, ExitCode::kUsage, "model_name_or_path is not set");
  for (const char* name : {"/absent/folder", "../absent", "./absent", "a/b/c", "a b", "org/../x", "org/", "a--b"}) {
    expect_error([&] { resolve_model(model_named(name)); }, ExitCode::kNoInput,
                 "neither a folder, a .gguf file nor a hub name");
  }
  expect_error([] { resolve_model(model_named("absent.gguf")); }, ExitCode::kNoInput, "absent.gguf");
}

TEST(ResolveModel, NamesAPathThatCannotBeLookedAt) {
  const std::string name(5000, 'x');
  expect_error([&] { resolve_model(model_named(name)); }, ExitCode::kNoInput, "File name too long");
}

TEST_F(HubCache, FindsASnapshotByBranchAndByCommit) {
  add_snapshot("cache", "abc123", "main");
  add_snapshot("cache", "def456", "refs/pr/1");
  auto given = model_named("org/model");
  given.cache_dir = (folder_ / "cache").string();
  expect_found(given, "cache/models--org--model/snapshots/abc123");
  given.model_revision = "def456";
  expect_found(given, "cache/models--org--model/snapshots/def456");
  given.model_revision = "refs/pr/1";
  expect_found(given, "cache/models--org--model/snapshots/def456");
}

TEST_F(HubCache, IsFoundByTheRulesOfHuggingfaceHub) {
  const auto given = model_named("org/model");
  environment_.set("HOME", (folder_ / "home").string());
  add_snapshot("home/.cache/huggingface/hub", "c1", "main");
  expect_found(given, "home/.cache/huggingface/hub/models--org--model/snapshots/c1");
  environment_.set("XDG_CACHE_HOME", (folder_ / "xdg").string());
  add_snapshot("xdg/huggingface/hub", "c2", "main");
  expect_found(given, "xdg/huggingface/hub/models--org--model/snapshots/c2");
  environment_.set("HF_HOME", (folder_ / "hf").string());
  add_snapshot("hf/hub", "c3", "main");
  expect_found(given, "hf/hub/models--org--model/snapshots/c3");
  environment_.set("HF_HUB_CACHE", (folder_ / "hub").string());
  add_snapshot("hub", "c4", "main");
  expect_found(given, "hub/models--org--model/snapshots/c4");
}

TEST_F(HubCache, NamesThePlacesThatItLookedAt) {
  auto given = model_named("org/model");
  given.cache_dir = (folder_ / "cache").string();
  const auto refuse = [&](ExitCode code, const std::string& fragment) {
    expect_error([&] { resolve_model(given); }, code, fragment);
  };
  refuse(ExitCode::kNoInput, (folder_ / "cache/models--org--model/refs/main").string());
  refuse(ExitCode::kNoInput, "fill the cache with fettle download");
  add_snapshot("cache", "abc123", "main");
  fs::remove_all(folder_ / "cache/models--org--model/snapshots/abc123");
  refuse(ExitCode::kNoInput, "revision main is not in the hub cache");
  folder_.write("cache/models--org--model/refs/main", "../../../../elsewhere");
  refuse(ExitCode::kNoInput, "revision main is not in the hub cache");
  given.model_revision = "../main";
  refuse(ExitCode::kUsage, "model_revision: '../main' is not a branch, tag or commit");
}

}  // namespace
}  // namespace fettle::hub
