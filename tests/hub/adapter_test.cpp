// SPDX-License-Identifier: Apache-2.0
#include "hub/adapter.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "hub/safetensors.h"
#include "hub/support.h"

namespace fettle::hub {
namespace {

using nlohmann::json;
using testing::ElementsAre;

constexpr const char* kSmallest = R"({"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]})";

/// kSmallest with one key changed.
std::string with(const std::string& key, const json& value) {
  json config = json::parse(kSmallest);
  config[key] = value;
  return config.dump();
}

AdapterConfig parse(const std::string& text) {
  return parse_adapter_config(text, "adapter_config.json");
}

TEST(AdapterConfig, ReadsWhatPeftWrites) {
  const AdapterConfig config = parse(R"({
    "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
    "base_model_name_or_path": "org/model", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
    "eva_config": null, "exclude_modules": "layers\\.0\\..*", "fan_in_fan_out": false, "inference_mode": true,
    "init_lora_weights": "gaussian", "kasa_config": null, "layer_replication": null, "layers_pattern": null,
    "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 32, "lora_bias": false, "lora_dropout": 0.05,
    "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": ["lm_head"],
    "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.0", "qalora_group_size": 16, "r": 16,
    "rank_pattern": {}, "revision": "main", "target_modules": ["v_proj", "q_proj"], "target_parameters": null,
    "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
    "use_qalora": false, "use_rslora": true, "velora_config": null})");
  EXPECT_EQ(config.r, 16);
  EXPECT_EQ(config.lora_alpha, 32);
  EXPECT_EQ(config.lora_dropout, 0.05);
  EXPECT_TRUE(config.use_rslora);
  EXPECT_THAT(config.target_modules.names, ElementsAre("v_proj", "q_proj"));
  EXPECT_TRUE(config.target_modules.pattern.empty());
  EXPECT_EQ(config.exclude_modules.pattern, R"(layers\.0\..*)");
  EXPECT_THAT(config.modules_to_save, ElementsAre("lm_head"));
  EXPECT_EQ(config.base_model_name_or_path, "org/model");
  EXPECT_EQ(config.revision, "main");
}

TEST(AdapterConfig, HasTheDefaultsOfPeft) {
  const AdapterConfig config = parse(kSmallest);
  EXPECT_EQ(config.lora_alpha, 8);
  EXPECT_EQ(config.lora_dropout, 0);
  EXPECT_FALSE(config.use_rslora);
  EXPECT_TRUE(config.exclude_modules.empty());
}

TEST(AdapterConfig, AcceptsKeysOfOtherVersionsThatSayNothing) {
  for (const json& neutral : {json(), json(false), json::object(), json::array(), json("")}) {
    EXPECT_EQ(parse(with("some_config", neutral)).r, 8) << neutral;
  }
}

TEST(AdapterConfig, RefusesWhatChangesTheResult) {
  const std::vector<std::pair<std::string, json>> cases = {
      {"use_dora", true},
      {"bias", "all"},
      {"bias", "lora_only"},
      {"rank_pattern", {{"q_proj", 4}}},
      {"alpha_pattern", {{"q_proj", 4}}},
      {"layers_to_transform", {0, 1}},
      {"layers_to_transform", 0},
      {"layer_replication", {{0, 4}}},
      {"fan_in_fan_out", true},
      {"lora_bias", true},
      {"use_qalora", true},
      {"trainable_token_indices", {1, 2}},
      {"target_parameters", {"experts.gate"}},
      {"megatron_config", {{"a", 1}}},
      {"loftq_config", {{"loftq_bits", 4}}},
      {"eva_config", {{"rho", 2.0}}},
      {"init_lora_weights", "pissa"},
      {"init_lora_weights", "pissa_niter_16"},
      {"init_lora_weights", "olora"},
      {"alora_invocation_tokens", {1}},
      {"ensure_weight_tying", true},
      {"task_type", "SEQ_CLS"},
      {"a_key_of_the_future", 1},
  };
  for (const auto& [key, value] : cases) {
    expect_error([&key = key, &value = value] { parse(with(key, value)); }, ExitCode::kConfig,
                 "adapter_config.json: '" + key + "' = ");
  }
}

TEST(AdapterConfig, RefusesWhatPeftWouldNotWrite) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not valid JSON"},
      {"[]", "a JSON object is expected"},
      {R"({"r": 8})", "peft_type is not LORA"},
      {with("peft_type", "LOHA"), "peft_type is not LORA"},
      {with("r", 0), "r is not a positive integer"},
      {with("r", -1), "r is not a positive integer"},
      {with("r", 1.5), "r is not a positive integer"},
      {with("r", "8"), "r is not a positive integer"},
      {with("r", uint64_t{1} << 40), "r is not a positive integer"},
      {with("lora_alpha", "16"), "lora_alpha is not a number"},
      {with("lora_alpha", 1e39), "lora_alpha is not a number"},
      {with("lora_dropout", 1.0), "lora_dropout is not in [0, 1)"},
      {with("lora_dropout", -0.1), "lora_dropout is not in [0, 1)"},
      {with("use_rslora", "yes"), "use_rslora is neither true nor false"},
      {with("target_modules", nullptr), "target_modules is missing or empty"},
      {with("target_modules", json::array()), "target_modules is missing or empty"},
      {with("target_modules", ""), "target_modules is missing or empty"},
      {with("target_modules", {1}), "target_modules is not a list of names"},
      {with("target_modules", {""}), "target_modules is not a list of names"},
      {with("modules_to_save", "lm_head"), "modules_to_save is not a list of names"},
      {with("base_model_name_or_path", 1), "base_model_name_or_path is not a string"},
  };
  for (const auto& [text, fragment] : cases) {
    expect_error([&text = text] { parse(text); }, ExitCode::kData, fragment);
  }
}

TEST(AdapterConfig, SurvivesWritingAndReading) {
  const TemporaryFolder folder;
  AdapterConfig config;
  config.r = 4;
  config.lora_alpha = 6.5;
  config.lora_dropout = 0.1;
  config.use_rslora = true;
  config.target_modules = {.names = {}, .pattern = R"(.*\.q_proj)"};
  config.exclude_modules = {.names = {"lm_head"}, .pattern = {}};
  config.modules_to_save = {"embed_tokens"};
  config.base_model_name_or_path = "org/model";
  config.revision = "main";
  write_adapter_config(folder.path(), config);
  const AdapterConfig read = read_adapter_config(folder.path());
  EXPECT_EQ(read.r, config.r);
  EXPECT_EQ(read.lora_alpha, config.lora_alpha);
  EXPECT_EQ(read.lora_dropout, config.lora_dropout);
  EXPECT_EQ(read.use_rslora, config.use_rslora);
  EXPECT_EQ(read.target_modules.pattern, config.target_modules.pattern);
  EXPECT_EQ(read.exclude_modules.names, config.exclude_modules.names);
  EXPECT_EQ(read.modules_to_save, config.modules_to_save);
  EXPECT_EQ(read.base_model_name_or_path, config.base_model_name_or_path);
  EXPECT_EQ(read.revision, config.revision);
}

TEST(AdapterConfig, WritesAWholeAlphaAsAnInteger) {
  const TemporaryFolder folder;
  AdapterConfig config;
  config.lora_alpha = 32;
  config.target_modules.names = {"q_proj"};
  write_adapter_config(folder.path(), config);
  EXPECT_TRUE(json::parse(read_file(folder / "adapter_config.json"))["lora_alpha"].is_number_integer());
}

TEST(AdapterFolder, SaysWhatIsMissing) {
  const TemporaryFolder folder;
  expect_error([&] { read_adapter_config(folder.path()); }, ExitCode::kNoInput, "adapter_config.json is not there");
  expect_error([&] { open_adapter_weights(folder.path()); }, ExitCode::kNoInput,
               "adapter_model.safetensors is not there");
  folder.write("adapter_model.bin", "pickle");
  expect_error([&] { open_adapter_weights(folder.path()); }, ExitCode::kNoInput, "load it once with PEFT");
}

TEST(AdapterFolder, OpensTheWeights) {
  const TemporaryFolder folder;
  const std::string name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
  const std::string bytes(8, '\0');
  const std::vector<TensorView> tensors = {
      {.name = name, .dtype = DType::kF32, .shape = {1, 2}, .bytes = as_bytes(bytes)}};
  write_safetensors(folder / "adapter_model.safetensors", tensors, {});
  EXPECT_NE(open_adapter_weights(folder.path()).find(name), nullptr);
}

}  // namespace
}  // namespace fettle::hub
