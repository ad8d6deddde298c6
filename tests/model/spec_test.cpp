// SPDX-License-Identifier: Apache-2.0
/// config.json → DecoderSpec: every family, both spellings of rope, and what is refused, by the key's name.
#include "model/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"
#include "tiny_model.h"

namespace fettle::model {
namespace {

using nlohmann::json;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json with(const json& changes) {
  json config = testing::tiny_config();
  config.update(changes);
  return config;
}

TEST(DecoderSpec, ReadsARealConfig) {
  const auto config = json::parse(read_file(FETTLE_SOURCE_DIR "/examples/stories260K/config.json"));
  const DecoderSpec spec = DecoderSpec::from_config(config);
  EXPECT_EQ(spec.vocab_size, 512);
  EXPECT_EQ(spec.layers, 5);
  EXPECT_EQ(spec.kv_heads, 4);
  EXPECT_EQ(spec.head_dim, 8);
  EXPECT_TRUE(spec.tied_embeddings);
  EXPECT_EQ(spec.bos_id, 1);
  EXPECT_THAT(spec.eos_ids, ElementsAre(2));
  EXPECT_EQ(parameter_count(spec), 260032);
}

TEST(DecoderSpec, KnowsTheFamiliesDefaults) {
  json config = testing::tiny_config();
  config.erase("num_key_value_heads");
  config["num_attention_heads"] = 32;
  config["hidden_size"] = 64;
  EXPECT_EQ(DecoderSpec::from_config(config).kv_heads, 32);
  config["model_type"] = "mistral";
  const DecoderSpec mistral = DecoderSpec::from_config(config);
  EXPECT_EQ(mistral.kv_heads, 8);
  EXPECT_THAT(mistral.windows, Each(4096));
  EXPECT_FALSE(mistral.qkv_bias);
  config["model_type"] = "qwen2";
  const DecoderSpec qwen2 = DecoderSpec::from_config(config);
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.output_bias);
  EXPECT_THAT(qwen2.windows, Each(0));
  config["model_type"] = "qwen3";
  const DecoderSpec qwen3 = DecoderSpec::from_config(config);
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_FALSE(qwen3.qkv_bias);
}

TEST(DecoderSpec, ReadsWindows) {
  EXPECT_THAT(DecoderSpec::from_config(with({{"model_type", "mistral"}, {"sliding_window", nullptr}})).windows,
              Each(0));
  EXPECT_THAT(DecoderSpec::from_config(with({{"model_type", "mistral"}, {"sliding_window", 7}})).windows, Each(7));
  const json qwen{{"model_type", "qwen2"}, {"sliding_window", 7}, {"max_window_layers", 2}};
  json used = qwen;
  used["use_sliding_window"] = true;
  EXPECT_THAT(DecoderSpec::from_config(with(qwen)).windows, Each(0));
  EXPECT_THAT(DecoderSpec::from_config(with(used)).windows, ElementsAre(0, 0, 7));
  used["layer_types"] = {"sliding_attention", "full_attention", "full_attention"};
  EXPECT_THAT(DecoderSpec::from_config(with(used)).windows, ElementsAre(7, 0, 0));
}

TEST(DecoderSpec, ReadsBothSpellingsOfRope) {
  json old_style = with({{"rope_theta", 5e5},
                         {"rope_scaling",
                          {{"type", "llama3"},
                           {"factor", 8},
                           {"low_freq_factor", 1},
                           {"high_freq_factor", 4},
                           {"original_max_position_embeddings", 64}}}});
  json new_style = testing::tiny_config();
  new_style.erase("rope_theta");
  new_style["rope_parameters"] = old_style["rope_scaling"];
  new_style["rope_parameters"].erase("type");
  new_style["rope_parameters"].update({{"rope_type", "llama3"}, {"rope_theta", 5e5}});
  for (const json& config : {old_style, new_style}) {
    const RopeSpec rope = DecoderSpec::from_config(config).rope;
    EXPECT_EQ(rope.kind, RopeKind::kLlama3);
    EXPECT_EQ(rope.theta, 5e5);
    EXPECT_EQ(rope.factor, 8);
    EXPECT_EQ(rope.high_freq_factor, 4);
    EXPECT_EQ(rope.original_max_positions, 64);
  }
}

// `rope_scaling or rope_parameters` in transformers: an empty object is none.
TEST(DecoderSpec, AnEmptyRopeScalingHidesNothing) {
  const json parameters{{"rope_type", "linear"}, {"factor", 2}, {"rope_theta", 5e5}};
  const RopeSpec rope =
      DecoderSpec::from_config(with({{"rope_scaling", json::object()}, {"rope_parameters", parameters}})).rope;
  EXPECT_EQ(rope.kind, RopeKind::kLinear);
  EXPECT_EQ(rope.theta, 5e5);
  EXPECT_EQ(DecoderSpec::from_config(with({{"rope_scaling", json::object()}})).rope.kind, RopeKind::kDefault);
}

TEST(DecoderSpec, NoKeyHeadsAreAsManyAsQueryHeads) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    EXPECT_EQ(DecoderSpec::from_config(with({{"model_type", family}, {"num_key_value_heads", nullptr}})).kv_heads, 4)
        << family;
  }
}

struct RefusedConfig {
  json changes;
  const char* key;  // must be in the message
};

TEST(DecoderSpec, RefusesByName) {
  const std::vector<RefusedConfig> table{
      {{{"model_type", "gpt2"}}, "llama, mistral, qwen2, qwen3"},
      {{{"model_type", nullptr}}, "model_type"},
      {{{"model_type", 3}}, "model_type"},
      {{{"vocab_size", nullptr}}, "'vocab_size' is missing"},
      {{{"vocab_size", 0}}, "vocab_size"},
      {{{"vocab_size", "many"}}, "vocab_size"},
      {{{"vocab_size", 1e9}}, "vocab_size"},
      {{{"hidden_size", -32}}, "hidden_size"},
      {{{"hidden_size", 33}}, "hidden_size"},
      {{{"intermediate_size", 1.5}}, "intermediate_size"},
      {{{"num_hidden_layers", 100000}}, "num_hidden_layers"},
      {{{"num_hidden_layers", uint64_t{1} << 63}}, "num_hidden_layers"},
      {{{"num_attention_heads", 0}}, "num_attention_heads"},
      {{{"num_key_value_heads", 3}}, "num_key_value_heads"},
      {{{"head_dim", 7}}, "head_dim"},
      {{{"hidden_act", "gelu"}}, "hidden_act"},
      {{{"rms_norm_eps", 0}}, "rms_norm_eps"},
      {{{"rms_norm_eps", "1e-5"}}, "rms_norm_eps"},
      {{{"rope_theta", -1}}, "rope_theta"},
      {{{"attention_dropout", 0.1}}, "attention_dropout"},
      {{{"attention_bias", 1}}, "attention_bias"},
      {{{"tie_word_embeddings", "yes"}}, "tie_word_embeddings"},
      {{{"sliding_window", 4}}, "sliding_window"},  // a llama has none
      {{{"final_logit_softcapping", 30.0}}, "final_logit_softcapping"},
      {{{"num_local_experts", 8}}, "num_local_experts"},
      {{{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
      {{{"pruned_heads", {{"0", {1}}}}}, "pruned_heads"},
      {{{"eos_token_id", "</s>"}}, "eos_token_id"},
      {{{"rope_interleaved", true}}, "rope_interleaved"},
      {{{"partial_rotary_factor", 0.5}}, "partial_rotary_factor"},
      {{{"rope_scaling", {{"type", "longrope"}, {"factor", 2}}}}, "longrope"},
      {{{"rope_scaling", {{"type", "linear"}}}}, "'factor' is missing"},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 0}}}}, "factor"},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 2}, {"short_factor", {1.0}}}}}, "short_factor"},
      {{{"rope_scaling", {{"type", "llama3"}, {"factor", 8}}}}, "low_freq_factor"},
      {{{"rope_scaling", {{"type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 4}}}},
       "high_freq_factor"},
      {{{"rope_scaling", "linear"}}, "rope_scaling"},
      {{{"rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}}}, "full_attention"},
      {{{"model_type", "mistral"}, {"sliding_window", -1}}, "sliding_window"},
      {{{"model_type", "qwen2"}, {"layer_types", {"full_attention"}}}, "layer_types"},
      {{{"model_type", "qwen3"}, {"use_sliding_window", true}, {"layer_types", {"full_attention", "x", "x"}}}, "'x'"},
      {{{"model_type", "qwen2"}, {"layer_types", {"sliding_attention", "full_attention", "full_attention"}}},
       "layer_types"},
  };
  for (const RefusedConfig& refused : table) {
    SCOPED_TRACE(refused.changes.dump());
    try {
      DecoderSpec::from_config(with(refused.changes));
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kConfig);
      EXPECT_THAT(error.what() + std::string(" ") + error.hint(), HasSubstr(refused.key));
    }
  }
  EXPECT_THROW(DecoderSpec::from_config(json::array()), Error);
}

TEST(DecoderSpec, IgnoresWhatChangesNothing) {
  EXPECT_NO_THROW(DecoderSpec::from_config(with({{"architectures", {"LlamaForCausalLM"}},
                                                 {"torch_dtype", "bfloat16"},
                                                 {"_model_name_or_path", "x"},
                                                 {"transformers_version", "4.40"},
                                                 {"pretraining_tp", 1},
                                                 {"attention_dropout", 0.0},
                                                 {"rope_interleaved", false},
                                                 {"pad_token_id", -1},
                                                 {"unheard_of", nullptr}})));
}

TEST(DecoderSpec, CountsFlops) {
  const DecoderSpec spec = DecoderSpec::from_config(testing::tiny_config());
  const double weights = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 32 * 61;
  const double attention = 3 * 4 * 32 * 10.0 * 3;
  EXPECT_DOUBLE_EQ(training_flops_per_token(spec, 10, false), 4 * weights + attention);
  EXPECT_DOUBLE_EQ(training_flops_per_token(spec, 10, true), 6 * weights + attention);
}

}  // namespace
}  // namespace fettle::model
