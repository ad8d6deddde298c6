// SPDX-License-Identifier: Apache-2.0
/// Loading, LoRA, masters and compute copies, adapters saved and read back.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>

#include <set>

#include "base/error.h"
#include "model/parameter.h"
#include "tiny_model.h"

namespace fettle::model {
namespace {

using testing::document;
using ::testing::HasSubstr;
using testing::largest_difference;
using ::testing::Not;
using testing::random_batch;
using testing::Tensors;
using testing::TinyModel;

at::Tensor logits(const Decoder& decoder, const Batch& batch) {
  const at::NoGradGuard no_gradients;
  return decoder.logits(decoder.hidden_states(batch));
}

TEST(Load, UsesMappedBytesInPlace) {
  const TinyModel tiny;
  const Decoder decoder = tiny.load(at::kFloat);
  for (const NamedTensor& weight : decoder.weights()) {
    EXPECT_EQ(weight.tensor.const_data_ptr(), static_cast<const void*>(tiny.source.find(weight.name)->bytes.data()));
  }
}

TEST(Load, ConvertsOtherTypes) {
  const TinyModel tiny;
  const Decoder wide = tiny.load(at::kFloat);
  const Decoder narrow = tiny.load(at::kBFloat16);
  const auto expected = wide.weights();
  const auto actual = narrow.weights();
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_TRUE(at::equal(actual[i].tensor, expected[i].tensor.to(at::kBFloat16))) << actual[i].name;
  }
}

std::string load_error(const std::function<void(testing::Tensors&)>& change, bool tied = false) {
  nlohmann::json config = testing::tiny_config();
  config["tie_word_embeddings"] = tied;
  const DecoderSpec spec = DecoderSpec::from_config(config);
  testing::Tensors tensors = testing::random_tensors(spec);
  change(tensors);
  const TemporaryFolder folder;
  const auto source = testing::write_tensors(folder.path() / "model.safetensors", tensors);
  try {
    Decoder::load(spec, source, at::kFloat);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kData);
    return error.what();
  }
}

TEST(Load, NamesTensorsThatDoNotFit) {
  EXPECT_EQ(load_error([](auto&) {}), "");
  EXPECT_THAT(load_error([](auto& all) { all.erase("model.layers.1.mlp.up_proj.weight"); }),
              HasSubstr("missing model.layers.1.mlp.up_proj.weight"));
  EXPECT_THAT(load_error([](auto& all) { all.erase("lm_head.weight"); }), HasSubstr("missing lm_head.weight"));
  EXPECT_THAT(load_error([](auto& all) { all["model.layers.0.self_attn.q_proj.bias"] = at::zeros({32}); }),
              HasSubstr("unknown model.layers.0.self_attn.q_proj.bias"));
  EXPECT_THAT(load_error([](auto& all) { all["model.norm.weight"] = at::zeros({31}); }),
              HasSubstr("model.norm.weight is [31] and should be [32]"));
  const std::string many = load_error([](auto& all) {
    all.clear();
    all["x"] = at::zeros({1});
  });
  EXPECT_THAT(many, HasSubstr("more"));
  EXPECT_THAT(many, Not(HasSubstr("model.layers.2.")));
}

TEST(Load, ToleratesWhatTheModelHasAlready) {
  EXPECT_EQ(load_error([](auto& all) { all["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::zeros({4}); }), "");
  EXPECT_EQ(load_error([](auto& all) { all["lm_head.weight"] = at::zeros({61, 32}); }, /*tied=*/true), "");
}

TEST(Lora, StartsAsTheBaseModel) {
  const TinyModel tiny;
  Decoder decoder = tiny.load();
  const Batch batch = random_batch({20}, 61);
  const at::Tensor before = logits(decoder, batch);
  decoder.add_lora(testing::lora_config(), 1);
  EXPECT_TRUE(at::equal(logits(decoder, batch), before));
  const auto trained = decoder.trainable();
  ASSERT_EQ(trained.size(), 3U * 7 * 2);
  EXPECT_EQ(trained[0].name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
  EXPECT_EQ(trained[1].name, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
  const double bound = 1 / std::sqrt(32.0);
  EXPECT_LE(trained[0].tensor.abs().max().item<float>(), bound);
  EXPECT_GT(trained[0].tensor.abs().max().item<float>(), 0.8 * bound);
  EXPECT_EQ(trained[1].tensor.abs().max().item<float>(), 0);
}

TEST(Lora, InitialNumbersAreAFunctionOfTheSeed) {
  const TinyModel tiny;
  const auto first = [&](uint64_t seed) {
    Decoder decoder = tiny.load();
    decoder.add_lora(testing::lora_config(), seed);
    return decoder.trainable()[0].tensor.detach();
  };
  EXPECT_TRUE(at::equal(first(1), first(1)));
  EXPECT_FALSE(at::equal(first(1), first(2)));
}

TEST(Lora, AdapterReadBackGivesTheSameLogits) {
  nlohmann::json config = testing::tiny_config();
  config["tie_word_embeddings"] = true;
  const TinyModel tiny(config);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    Decoder trained = tiny.load(type);
    config::LoraConfig options = testing::lora_config();
    options.use_rslora = true;
    options.lora_modules_to_save = {"lm_head", "norm"};
    trained.add_lora(options, 1);
    {
      const at::NoGradGuard no_gradients;
      for (const NamedTensor& tensor : trained.trainable()) {
        tensor.tensor.add_(at::randn(tensor.tensor.sizes()) * 0.1);
      }
    }
    trained.refresh_compute_weights();
    testing::Tensors tensors;
    for (const NamedTensor& tensor : trained.adapter_tensors()) {
      tensors[tensor.name] = tensor.tensor.detach();
    }
    EXPECT_TRUE(tensors.contains("base_model.model.lm_head.weight"));
    EXPECT_TRUE(tensors.contains("base_model.model.model.layers.0.input_layernorm.weight"));
    const TemporaryFolder folder;
    const auto source = testing::write_tensors(folder.path() / "adapter_model.safetensors", tensors);
    Decoder loaded = tiny.load(type);
    loaded.load_adapter(trained.adapter_config(), source);
    const Batch batch = random_batch({20}, 61);
    EXPECT_TRUE(at::equal(logits(loaded, batch), logits(trained, batch)));
    EXPECT_FALSE(at::equal(logits(loaded, batch), logits(tiny.load(type), batch)));

    tensors.erase("base_model.model.lm_head.weight");
    const auto incomplete = testing::write_tensors(folder.path() / "incomplete.safetensors", tensors);
    Decoder other = tiny.load(type);
    EXPECT_THROW(other.load_adapter(trained.adapter_config(), incomplete), Error);
  }
}

TEST(Lora, ASavedEmbeddingLeavesTheTiedHeadAsItWas) {
  nlohmann::json config = testing::tiny_config();
  config["tie_word_embeddings"] = true;
  const TinyModel tiny(config);
  Decoder decoder = tiny.load();
  config::LoraConfig options = testing::lora_config();
  options.lora_modules_to_save = {"embed_tokens"};
  decoder.add_lora(options, 1);
  const at::Tensor hidden = at::randn({3, 32});
  const at::NoGradGuard no_gradients;
  const at::Tensor before = decoder.logits(hidden);
  for (const NamedTensor& trained : decoder.trainable()) {
    EXPECT_NE(trained.name, "base_model.model.lm_head.weight");
    if (trained.name == "base_model.model.model.embed_tokens.weight") {
      trained.tensor.mul_(2);
    }
  }
  EXPECT_TRUE(at::equal(decoder.logits(hidden), before));
}

TEST(Lora, ResolvesAllLinearToNames) {
  const TinyModel tiny;
  Decoder decoder = tiny.load();
  decoder.add_lora(testing::lora_config(), 1);
  EXPECT_THAT(decoder.adapter_config().target_modules.names,
              ::testing::ElementsAre("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"));
  EXPECT_EQ(decoder.adapter_config().target_modules.pattern, "");
}

TEST(Masters, ReachTheComputationAfterARefresh) {
  const TinyModel tiny;
  const Batch batch = random_batch({20}, 61);
  Decoder decoder = tiny.load(at::kBFloat16);
  decoder.make_trainable_full();
  const at::Tensor before = logits(decoder, batch);
  {
    const at::NoGradGuard no_gradients;
    decoder.trainable().back().tensor.mul_(2);  // lm_head
  }
  EXPECT_TRUE(at::equal(logits(decoder, batch), before));
  decoder.refresh_compute_weights();
  EXPECT_TRUE(at::equal(logits(decoder, batch), before * 2));
}

TEST(Masters, KeepTheFilesPrecisionAndLeaveTheFileAlone) {
  const TinyModel tiny;
  Decoder decoder = tiny.load(at::kBFloat16);
  decoder.make_trainable_full();
  const Decoder original = tiny.load(at::kFloat);
  std::set<const void*> mapped;
  for (const NamedTensor& weight : original.weights()) {
    mapped.insert(weight.tensor.const_data_ptr());
  }
  const auto trained = decoder.trainable();
  ASSERT_EQ(trained.size(), original.weights().size());
  for (size_t i = 0; i < trained.size(); ++i) {
    EXPECT_TRUE(at::equal(trained[i].tensor.detach(), original.weights()[i].tensor)) << trained[i].name;
    EXPECT_FALSE(mapped.contains(trained[i].tensor.const_data_ptr()));
  }
}

// The gradients of every master for one batch, by name.
Tensors gradients(Decoder& decoder, const std::vector<Batch>& batches) {
  for (const Batch& batch : batches) decoder.loss_sum(batch).backward();
  Tensors found;
  for (const NamedTensor& trained : decoder.trainable()) found[trained.name] = trained.tensor.grad();
  return found;
}

double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  return ((actual - expected).norm() / expected.norm()).item<double>();
}

// Three quarters of 5,632 tokens are the same one: a sum of its occurrences' gradients in bfloat16 is off by half and
// more.
TEST(Masters, AFrequentTokensEmbeddingLearnsFromAllItsOccurrences) {
  constexpr const char* kEmbedding = "model.embed_tokens.weight";
  for (const bool tied : {false, true}) {
    SCOPED_TRACE(tied ? "tied" : "untied");
    at::manual_seed(11);
    nlohmann::json config = testing::tiny_config();
    config.update({{"tie_word_embeddings", tied}, {"num_hidden_layers", 1}});
    const TinyModel tiny(config);
    Batch batch = random_batch(std::vector<int64_t>(44, 128), 61);
    batch.tokens.masked_fill_(at::randint(0, 4, {44 * 128}, at::kLong) > 0, 13);
    ASSERT_GE((batch.tokens == 13).sum().item<int64_t>(), 4096);
    batch.labels.masked_fill_(batch.labels != -100, 7);  // a common direction, as real text has
    Decoder exact = tiny.load(at::kFloat);
    exact.make_trainable_full();
    Decoder narrow = tiny.load(at::kBFloat16);
    narrow.make_trainable_full();
    const Tensors expected = gradients(exact, {batch});
    const Tensors actual = gradients(narrow, {batch});
    // Activations and their gradients are rounded to 2^-9 layer by layer; a sum over many tokens averages that out.
    EXPECT_LE(relative_error(actual.at(kEmbedding)[13], expected.at(kEmbedding)[13]), 0.03);
    EXPECT_LE(relative_error(actual.at(kEmbedding), expected.at(kEmbedding)), 0.03);

    std::vector<Batch> documents;
    for (size_t i = 0; i < 44; ++i) documents.push_back(document(batch, i));
    Decoder accumulated = tiny.load(at::kBFloat16);
    accumulated.make_trainable_full();
    for (const auto& [name, gradient] : gradients(accumulated, documents)) {
      EXPECT_LE(relative_error(gradient, actual.at(name)), 0.02) << name << ", one document at a time";
    }
  }
}

TEST(Masters, RowsAreTheValueBitForBit) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    Parameter parameter("a", at::randn({5, 3}).to(type));
    const at::Tensor indices = at::randint(0, 5, {20}, at::kLong);
    EXPECT_TRUE(at::equal(parameter.rows(indices), parameter.value().index_select(0, indices)));
    parameter.train(at::randn({5, 3}));
    const at::Tensor rows = parameter.rows(indices);
    EXPECT_EQ(rows.scalar_type(), type);
    EXPECT_TRUE(at::equal(rows, parameter.value().index_select(0, indices)));
    EXPECT_TRUE(rows.requires_grad());
  }
}

TEST(Masters, TiedEmbeddingsAreOneWeight) {
  nlohmann::json config = testing::tiny_config();
  config["tie_word_embeddings"] = true;
  const TinyModel tiny(config);
  Decoder decoder = tiny.load();
  decoder.make_trainable_full();
  int count = 0;
  for (const NamedTensor& trained : decoder.trainable()) {
    count += trained.name == "lm_head.weight" || trained.name == "model.embed_tokens.weight" ? 1 : 0;
  }
  EXPECT_EQ(count, 1);
}

}  // namespace
}  // namespace fettle::model
