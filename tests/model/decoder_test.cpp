// SPDX-License-Identifier: Apache-2.0
/// What must not change a decoder's results: packing, checkpointing, the cache. Equality with transformers is tested in
/// tests/interop.
#include "model/decoder.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>

#include "tiny_model.h"

namespace fettle::model {
namespace {

using nlohmann::json;
using testing::largest_difference;
using testing::random_batch;
using testing::tiny_config;
using testing::TinyModel;

std::vector<std::pair<std::string, json>> families() {
  json mistral = tiny_config();
  mistral.update({{"model_type", "mistral"}, {"sliding_window", 6}});
  json qwen2 = tiny_config();
  qwen2.update({{"model_type", "qwen2"}, {"tie_word_embeddings", true}});
  json qwen3 = tiny_config();
  qwen3.update({{"model_type", "qwen3"},
                {"head_dim", 16},
                {"use_sliding_window", true},
                {"sliding_window", 5},
                {"max_window_layers", 1}});
  json dynamic = tiny_config();
  dynamic.update({{"max_position_embeddings", 16}, {"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}});
  return {{"llama", tiny_config()}, {"mistral", mistral}, {"qwen2", qwen2}, {"qwen3", qwen3}, {"dynamic", dynamic}};
}

TEST(Decoder, LossIsTheSumOverTargetsOfItsLogits) {
  const TinyModel tiny;
  const Decoder decoder = tiny.load();
  const Batch batch = random_batch({12, 5}, 61);
  const at::NoGradGuard no_gradients;
  const at::Tensor expected =
      at::cross_entropy_loss(decoder.logits(decoder.hidden_states(batch)), batch.labels, {}, at::Reduction::Sum, -100);
  EXPECT_NEAR(decoder.loss_sum(batch).item<float>(), expected.item<float>(), 1e-5 * expected.item<float>());
}

TEST(Decoder, PackedDocumentsEqualSeparateOnes) {
  for (const auto& [name, config] : families()) {
    SCOPED_TRACE(name);
    const TinyModel tiny(config);
    Decoder packed = tiny.load();
    Decoder separate = tiny.load();
    packed.make_trainable_full();
    separate.make_trainable_full();
    const Batch batch = random_batch({23, 1, 40, 7}, 61);
    const at::Tensor loss = packed.loss_sum(batch);
    loss.backward();
    double sum = 0;
    for (size_t i = 0; i < 4; ++i) {
      const at::Tensor part = separate.loss_sum(testing::document(batch, i));
      part.backward();
      sum += part.item<float>();
    }
    EXPECT_NEAR(loss.item<float>(), sum, 1e-6 * sum);
    for (size_t i = 0; i < packed.trainable().size(); ++i) {
      const at::Tensor a = packed.trainable()[i].tensor.grad();
      const at::Tensor b = separate.trainable()[i].tensor.grad();
      EXPECT_LE((a - b).norm().item<float>(), 2e-6 * b.norm().item<float>()) << packed.trainable()[i].name;
    }
  }
}

std::vector<at::Tensor> gradients(Decoder decoder, const Batch& batch, bool checkpointing) {
  decoder.set_training(true);
  decoder.set_gradient_checkpointing(checkpointing);
  at::manual_seed(5);
  const at::Tensor loss = decoder.loss_sum(batch);
  loss.backward();
  std::vector<at::Tensor> results{loss.detach(), at::randn({4})};  // the generator has moved on equally far
  for (const NamedTensor& trained : decoder.trainable()) {
    EXPECT_TRUE(trained.tensor.grad().defined()) << trained.name;
    EXPECT_EQ(trained.tensor.grad().scalar_type(), at::kFloat);
    results.push_back(trained.tensor.grad());
  }
  return results;
}

TEST(Decoder, CheckpointingChangesNoBit) {
  for (const auto& [name, config] : families()) {
    const TinyModel tiny(config);
    const Batch batch = random_batch({23, 40}, 61);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      for (const bool full : {false, true}) {
        SCOPED_TRACE(name + " " + c10::toString(type) + (full ? " full" : " LoRA with dropout"));
        const auto make = [&] {
          Decoder decoder = tiny.load(type);
          if (full) {
            decoder.make_trainable_full();
          } else {
            decoder.add_lora(testing::lora_config(0.2), 3);
            const at::NoGradGuard no_gradients;
            for (const NamedTensor& trained : decoder.trainable()) {
              trained.tensor.add_(0.05);  // B is zero at the start, and with it the gradient of A
            }
            decoder.refresh_compute_weights();
          }
          return decoder;
        };
        const auto plain = gradients(make(), batch, false);
        const auto recomputed = gradients(make(), batch, true);
        ASSERT_EQ(plain.size(), recomputed.size());
        for (size_t i = 0; i < plain.size(); ++i) {
          EXPECT_TRUE(at::equal(plain[i], recomputed[i])) << i;
        }
      }
    }
  }
}

TEST(Decoder, DropoutActsInTrainingOnly) {
  const TinyModel tiny;
  Decoder decoder = tiny.load();
  decoder.add_lora(testing::lora_config(0.5), 3);
  const at::NoGradGuard no_gradients;
  for (const NamedTensor& trained : decoder.trainable()) {
    trained.tensor.add_(0.1);
  }
  const Batch batch = random_batch({20}, 61);
  const float first = decoder.loss_sum(batch).item<float>();
  EXPECT_EQ(decoder.loss_sum(batch).item<float>(), first);
  decoder.set_training(true);
  EXPECT_NE(decoder.loss_sum(batch).item<float>(), decoder.loss_sum(batch).item<float>());
  decoder.set_training(false);
  EXPECT_EQ(decoder.loss_sum(batch).item<float>(), first);
}

TEST(Decoder, CacheContinuesTheDocument) {
  const at::NoGradGuard no_gradients;
  for (const auto& [name, config] : families()) {
    if (name == "dynamic") {
      continue;  // its frequencies depend on the length when a key was made, in transformers too
    }
    SCOPED_TRACE(name);
    const TinyModel tiny(config);
    const Decoder decoder = tiny.load();
    const Batch whole = random_batch({30}, 61);
    const at::Tensor expected = decoder.hidden_states(whole);
    KvCache cache(decoder.spec(), 30, at::kFloat);
    for (const auto& [begin, count] :
         std::vector<std::pair<int64_t, int64_t>>{{0, 11}, {11, 1}, {12, 8}, {20, 1}, {21, 9}}) {
      const Batch next{whole.tokens.narrow(0, begin, count),
                       {},
                       whole.positions.narrow(0, begin, count),
                       {0, static_cast<int32_t>(count)}};
      EXPECT_LE(largest_difference(decoder.hidden_states(next, &cache), expected.narrow(0, begin, count)), 2e-5)
          << begin;
    }
    EXPECT_EQ(cache.length(), 30);
    const Batch more{whole.tokens.narrow(0, 0, 1), {}, whole.positions.narrow(0, 29, 1), {0, 1}};
    EXPECT_THROW(decoder.hidden_states(more, &cache), c10::Error);
  }
}

TEST(Decoder, RefusesABatchThatIsNotWhole) {
  const TinyModel tiny;
  const Decoder decoder = tiny.load();
  Batch batch = random_batch({8}, 61);
  batch.cu_seqlens = {0, 7};
  EXPECT_THROW(decoder.hidden_states(batch), c10::Error);
  batch = random_batch({8}, 61);
  batch.positions = batch.positions.narrow(0, 0, 7);
  EXPECT_THROW(decoder.hidden_states(batch), c10::Error);
}

}  // namespace
}  // namespace fettle::model
