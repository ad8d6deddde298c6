// SPDX-License-Identifier: Apache-2.0
/// What llama.cpp makes of the metadata is in tests/interop/test_gguf_export.py.
#include "train/gguf_metadata.h"

#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace fettle::train {
namespace {

using nlohmann::json;

model::DecoderSpec spec_of(const std::string& model_type, const json& changes = json::object()) {
  json config = {{"model_type", model_type},
                 {"vocab_size", 32},
                 {"hidden_size", 32},
                 {"intermediate_size", 64},
                 {"num_hidden_layers", 2},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"max_position_embeddings", 128},
                 {"head_dim", 8}};
  config.update(changes);
  return model::DecoderSpec::from_config(config);
}

void expect_refused(const std::string& model_type, const json& changes, const std::string& words) {
  const model::DecoderSpec spec = spec_of(model_type, changes);
  try {
    hub::GgufMetadata metadata;
    describe_model(metadata, spec);
    ADD_FAILURE() << "no error with: " << words;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kConfig);
    EXPECT_THAT(error.what(), testing::HasSubstr(words));
  }
}

json rope(const json& parameters) {
  return {{"rope_parameters", parameters}};
}
const json kLlama3 = {{"rope_type", "llama3"},
                      {"factor", 8.0},
                      {"low_freq_factor", 1.0},
                      {"high_freq_factor", 4.0},
                      {"original_max_position_embeddings", 64}};

TEST(GgufArchitecture, RefusesWhatLlamaCppComputesOtherwise) {
  const json window = {{"use_sliding_window", true}, {"sliding_window", 16}, {"max_window_layers", 0}};
  expect_refused("qwen2", window, "'use_sliding_window' is not known to llama.cpp");
  json some = window;
  some["max_window_layers"] = 1;
  expect_refused("qwen3", some, "sliding windows in some layers only");
  expect_refused("qwen2", rope(kLlama3), "rope_type 'llama3' is known to llama.cpp of llama models only");
  expect_refused("qwen3", {{"attention_bias", true}}, "'attention_bias' is not known to llama.cpp for qwen3");
  expect_refused("qwen2", {{"head_dim", 16}}, "'head_dim' other than hidden_size / num_attention_heads");
  expect_refused("llama", rope({{"rope_type", "yarn"}, {"factor", 2.0}, {"truncate", false}}), "'truncate' false");
}

TEST(GgufArchitecture, TakesAWindowThatNoTextNoticesForNone) {
  const json window = {{"use_sliding_window", true}, {"sliding_window", 128}, {"max_window_layers", 1}};
  EXPECT_EQ(gguf_architecture(spec_of("qwen2", window)), "qwen2");
  hub::GgufMetadata metadata;
  describe_model(metadata, spec_of("mistral", {{"sliding_window", 128}}));
  EXPECT_THAT(metadata.bytes(), testing::Not(testing::HasSubstr("sliding_window")));
  EXPECT_THAT(metadata.bytes(), testing::HasSubstr("llama.embedding_length"));
}

TEST(RopeFactors, AreTheDivisorsOfLlama3) {
  EXPECT_THAT(rope_factors(spec_of("llama").rope), testing::IsEmpty());
  // Wavelengths 6.3, 62.8, 628 and 6283 in a length of 64: kept; between; divided; divided.
  const double turns = 64 / (2 * M_PI * 10);
  const double smooth = (turns - 1) / 3;
  const auto factors = rope_factors(spec_of("llama", rope(kLlama3)).rope);
  EXPECT_THAT(factors,
              testing::ElementsAre(1, testing::FloatEq(static_cast<float>(1 / ((1 - smooth) / 8 + smooth))), 8, 8));
}

}  // namespace
}  // namespace fettle::train
