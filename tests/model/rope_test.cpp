// SPDX-License-Identifier: Apache-2.0
/// Rotary frequencies against transformers (tests/golden/make_rope.py).
#include "model/rope.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "tiny_model.h"

namespace fettle::model {
namespace {

TEST(Rope, FrequenciesEqualTransformers) {
  const auto cases = nlohmann::json::parse(read_file(FETTLE_SOURCE_DIR "/tests/golden/rope.json"));
  ASSERT_GE(cases.size(), 11U);
  for (const auto& [name, golden] : cases.items()) {
    SCOPED_TRACE(name);
    nlohmann::json config = testing::tiny_config();
    config.erase("rope_theta");
    config["hidden_size"] = 256;
    config["max_position_embeddings"] = 2048;
    config["rope_parameters"] = golden["rope_parameters"];
    const RopeSpec rope = DecoderSpec::from_config(config).rope;
    const RopeFrequencies frequencies = rope_frequencies(rope, golden["length"].get<int64_t>());
    EXPECT_NEAR(frequencies.attention_scaling, golden["attention_scaling"].get<double>(), 1e-12);
    const auto expected = golden["inverse_frequencies"].get<std::vector<double>>();
    ASSERT_EQ(frequencies.inverse.numel(), std::ssize(expected));
    for (size_t i = 0; i < expected.size(); ++i) {
      const double actual = frequencies.inverse[static_cast<int64_t>(i)].item<float>();
      EXPECT_NEAR(actual, expected[i], 3e-7 * expected[i]) << "pair " << i;  // two roundings of float32
    }
  }
}

TEST(Rope, DynamicScalingLooksAtEachDocumentsOwnLength) {
  nlohmann::json config = testing::tiny_config();
  config["max_position_embeddings"] = 8;
  config["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
  const RopeSpec rope = DecoderSpec::from_config(config).rope;
  const Batch batch = testing::random_batch({20, 8, 1, 12}, 10);
  const RopeTable packed = rope_table(rope, batch.positions, batch.cu_seqlens, {at::kFloat});
  for (size_t i = 0; i < 4; ++i) {
    const Batch alone = testing::document(batch, i);
    const RopeTable table = rope_table(rope, alone.positions, alone.cu_seqlens, {at::kFloat});
    EXPECT_TRUE(at::equal(packed.cos.narrow(0, batch.cu_seqlens[i], alone.tokens.size(0)), table.cos)) << i;
    EXPECT_TRUE(at::equal(packed.sin.narrow(0, batch.cu_seqlens[i], alone.tokens.size(0)), table.sin)) << i;
  }
  EXPECT_FALSE(at::equal(packed.cos[1], packed.cos[21]));  // position 1 of a long and of a short document
}

TEST(Rope, TableIsCastAfterTheCosine) {
  const RopeSpec rope = DecoderSpec::from_config(testing::tiny_config()).rope;
  const at::Tensor positions = at::arange(100, at::kLong);
  const RopeTable wide = rope_table(rope, positions, {0, 100}, {at::kFloat});
  const RopeTable narrow = rope_table(rope, positions, {0, 100}, {at::kBFloat16});
  EXPECT_TRUE(at::equal(wide.cos.to(at::kBFloat16), narrow.cos));
  EXPECT_TRUE(at::equal(wide.sin.to(at::kBFloat16), narrow.sin));
}

}  // namespace
}  // namespace fettle::model
