// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "hub/gguf.h"
#include "hub/gguf_bytes.h"
#include "hub/support.h"

namespace fettle::hub {
namespace {

using nlohmann::json;

/// The metadata and embedding of a small model; entries can be replaced, left out or added.
class Model {
 public:
  explicit Model(std::string architecture = "llama") : architecture_(std::move(architecture)) {
    set("general.architecture", gguf_entry("general.architecture", architecture_));
    for (const auto& [key, value] : std::map<std::string, uint32_t>{{"block_count", 1},
                                                                    {"context_length", 128},
                                                                    {"embedding_length", 32},
                                                                    {"feed_forward_length", 64},
                                                                    {"attention.head_count", 4},
                                                                    {"attention.head_count_kv", 2}}) {
      with(key, value);
    }
    with("attention.layer_norm_rms_epsilon", 1e-5F);
    tensors_.push_back(gguf_tensor("token_embd.weight", {32, 2}, 0, 0));
  }

  /// A key below the architecture's name.
  template <typename T>
  Model& with(const std::string& key, T value) {
    const std::string full = architecture_ + "." + key;
    return set(full, gguf_entry(full, value));
  }
  Model& set(const std::string& key, const std::string& entry) {
    entries_[key] = entry;
    return *this;
  }
  Model& without(const std::string& key) {
    entries_.erase(key);
    return *this;
  }
  Model& tensor(const std::string& name, const std::vector<uint64_t>& dimensions) {
    tensors_.push_back(gguf_tensor(name, dimensions, 0, 4096 * tensors_.size()));
    return *this;
  }

  json config() const {
    const std::string bytes = file();
    return GgufFile::parse(as_bytes(bytes), "m.gguf").config();
  }
  void model_tensors() const {
    const std::string bytes = file();
    (void)GgufFile::parse(as_bytes(bytes), "m.gguf").model_tensors();
  }

 private:
  [[nodiscard]] std::string file() const {
    GgufParts parts;
    for (const auto& [key, entry] : entries_) parts.entries.push_back(entry);
    parts.tensors = tensors_;
    parts.data_size = 4096 * tensors_.size();
    return make_gguf(parts);
  }

  std::string architecture_;
  std::map<std::string, std::string> entries_;
  std::vector<std::string> tensors_;
};

TEST(GgufConfig, HasTheKeysOfConfigJson) {
  EXPECT_EQ(Model().with("rope.freq_base", 5e5F).config(), json::parse(R"({
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "attention_bias": false,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0, "vocab_size": 2, "tie_word_embeddings": true})"));
}

TEST(GgufConfig, TellsMistralByItsWindow) {
  const json config = Model().with("attention.sliding_window", 64U).config();
  EXPECT_EQ(config["model_type"], "mistral");
  EXPECT_EQ(config["architectures"][0], "MistralForCausalLM");
  EXPECT_EQ(config["sliding_window"], 64);
}

TEST(GgufConfig, ReadsTheOptionalKeys) {
  EXPECT_EQ(Model().without("llama.attention.head_count_kv").config()["num_key_value_heads"], 4);
  EXPECT_EQ(Model().config()["rope_theta"], 10000.0);
  EXPECT_EQ(Model("qwen3").with("attention.key_length", 16U).config()["head_dim"], 16);
  EXPECT_EQ(Model().tensor("output.weight", {32, 2}).config()["tie_word_embeddings"], false);
  EXPECT_EQ(Model().tensor("blk.0.attn_q.bias", {32}).config()["attention_bias"], true);
  EXPECT_EQ(Model().tensor("blk.0.ffn_gate.bias", {64}).config()["mlp_bias"], true);
  EXPECT_FALSE(Model("qwen2").config().contains("attention_bias"));
  const std::string eos = "tokenizer.ggml.eos_token_id";
  EXPECT_EQ(Model().set(eos, gguf_entry(eos, 7U)).config()["eos_token_id"], 7);
}

TEST(GgufConfig, StatesRopeScaling) {
  EXPECT_EQ(Model()
                .with("rope.scaling.type", std::string_view("linear"))
                .with("rope.scaling.factor", 4.0F)
                .config()["rope_scaling"],
            json::parse(R"({"rope_type": "linear", "factor": 4.0})"));
  EXPECT_EQ(Model().with("rope.scale_linear", 2.0F).config()["rope_scaling"],
            json::parse(R"({"rope_type": "linear", "factor": 2.0})"));
  EXPECT_EQ(Model()
                .with("rope.scaling.type", std::string_view("yarn"))
                .with("rope.scaling.factor", 4.0F)
                .with("rope.scaling.original_context_length", 32U)
                .config()["rope_scaling"],
            json::parse(R"({"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
                            "original_max_position_embeddings": 32})"));
  const json own_factor = Model()
                              .with("rope.scaling.type", std::string_view("yarn"))
                              .with("rope.scaling.factor", 4.0F)
                              .with("rope.scaling.original_context_length", 32U)
                              .with("rope.scaling.attn_factor", 0.5F)
                              .config()["rope_scaling"];
  EXPECT_DOUBLE_EQ(own_factor["attention_factor"], 0.5 * (0.1 * std::log(4.0) + 1));
  EXPECT_FALSE(Model().with("rope.scaling.type", std::string_view("none")).config().contains("rope_scaling"));
}

TEST(GgufConfig, RecognisesTheRopeScalingOfLlama3) {
  const auto path = std::filesystem::path(FETTLE_SOURCE_DIR) / "tests/data/gguf/llama.gguf";
  EXPECT_EQ(GgufFile::open(path).config()["rope_scaling"], json::parse(R"({"rope_type": "llama3", "factor": 32.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})"));
}

TEST(GgufConfig, RefusesWhatItCannotState) {
  const auto refuse = [](const Model& model, ExitCode code, const std::string& fragment) {
    expect_error([&] { model.config(); }, code, fragment);
  };
  const std::string key = "llama.";
  refuse(Model("gemma2"), ExitCode::kConfig, "architecture 'gemma2' is not supported from GGUF");
  refuse(Model().without("general.architecture"), ExitCode::kData, "general.architecture is missing");
  refuse(Model().without("llama.block_count"), ExitCode::kData, "metadata llama.block_count is missing");
  refuse(Model().with("block_count", 0U), ExitCode::kData, "metadata llama.block_count is 0");
  refuse(Model().with("block_count", 1.0F), ExitCode::kData, "llama.block_count is not one non-negative integer");
  refuse(Model().with("block_count", UINT32_MAX), ExitCode::kData, "llama.block_count is 4294967295");
  refuse(Model().with("embedding_length", 33U), ExitCode::kData, "embedding_length 33 is not a multiple");
  refuse(Model().with("rope.dimension_count", 4U), ExitCode::kConfig, "rope.dimension_count 4 differs");
  refuse(Model().with("attention.value_length", 4U), ExitCode::kConfig, "attention.value_length 4 differs");
  refuse(Model().without("llama.attention.layer_norm_rms_epsilon"), ExitCode::kData, "layer_norm_rms_epsilon");
  refuse(Model().with("rope.freq_base", std::string_view("x")), ExitCode::kData, "rope.freq_base is not a finite");
  refuse(Model().with("vocab_size", 3U), ExitCode::kData, "vocab_size is 3, but token_embd.weight has 2 rows");
  refuse(Model().with("logit_scale", 2.0F), ExitCode::kConfig, "'llama.logit_scale' is not supported");
  refuse(Model().with("expert_count", 8U), ExitCode::kConfig, "mixtures of experts");
  refuse(Model().set("a", gguf_entry("llama.attention.causal", 7, std::string(1, '\0'))), ExitCode::kConfig, "causal");
  refuse(Model().set("a", gguf_entry("split.count", 2U)), ExitCode::kData, "one part of a split model");
  refuse(Model("qwen2").with("attention.sliding_window", 8U), ExitCode::kConfig, "for mistral only");
  refuse(Model().with("rope.scaling.type", std::string_view("longrope")), ExitCode::kConfig, "'longrope'");
  refuse(Model().with("rope.scaling.type", std::string_view("yarn")).with("rope.scaling.factor", 4.0F), ExitCode::kData,
         "original_context_length is missing");
  refuse(Model().tensor("rope_freqs.weight", {4}), ExitCode::kConfig, "not the rope scaling of a Llama 3 model");
  refuse(Model().tensor("rope_freqs.weight", {5}), ExitCode::kConfig, "not the rope scaling of a Llama 3 model");
}

TEST(GgufModelTensors, RefusesTensorsWithoutACounterpart) {
  for (const char* name : {"blk.0.ffn_gate_exps.weight", "blk.x.attn_q.weight", "blk..attn_q.weight",
                           "position_embd.weight", "blk.0.attn_q.scale", "weight", "blk.0.weight"}) {
    expect_error([&] { Model().tensor(name, {32}).model_tensors(); }, ExitCode::kData, "has no counterpart");
  }
  expect_error(
      [] {
        Model().tensor("blk.0.attn_q.weight", {32, 12}).model_tensors();
      },
      ExitCode::kData, "its rows do not divide into 4 heads");
}

}  // namespace
}  // namespace fettle::hub
