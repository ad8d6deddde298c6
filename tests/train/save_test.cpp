// SPDX-License-Identifier: Apache-2.0
#include "train/save.h"

#include <ATen/ops/equal.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/file.h"
#include "train/evaluate.h"
#include "train/inputs.h"
#include "train/model_card.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

namespace fs = std::filesystem;

const data::OrderOptions kOrder = {64, true, false, 0, 8};

config::ModelConfig stories() {
  config::ModelConfig options;
  options.model_name_or_path = fs::path(FETTLE_SOURCE_DIR) / "examples/stories260K";
  return options;
}

TEST(SaveAdapter, ReadBackItIsTheSameModel) {
  const TemporaryFolder folder;
  const ModelInputs inputs = load_inputs(stories());
  const model::Decoder model = tiny_lora(at::kBFloat16);
  save_adapter(folder.path(), model, stories(), inputs.tokenizer);
  EXPECT_TRUE(fs::exists(folder.path() / "tokenizer.json"));
  const model::Decoder loaded = load_result(folder.path(), inputs.base, true, at::kBFloat16);
  EXPECT_EQ(evaluate(loaded, tiny_dataset(5), kOrder).loss, evaluate(model, tiny_dataset(5), kOrder).loss);
  config::ModelConfig with_adapter = stories();
  with_adapter.adapter_name_or_path = folder.path();
  const model::Decoder given = load_model(inputs, with_adapter, {at::kBFloat16});
  EXPECT_EQ(evaluate(given, tiny_dataset(5), kOrder).loss, evaluate(model, tiny_dataset(5), kOrder).loss);
}

TEST(SaveFullModel, ReadBackItIsTheSameModel) {
  const TemporaryFolder folder;
  const ModelInputs inputs = load_inputs(stories());
  model::Decoder model = load_model(inputs, stories(), {at::kFloat});
  model.make_trainable_full();
  model.trainable().front().tensor.data().mul_(1.25);
  save_full_model(folder.path(), model, inputs.base, inputs.tokenizer, 400'000);
  EXPECT_TRUE(fs::exists(folder.path() / "model.safetensors.index.json")) << "more than one shard";
  EXPECT_EQ(nlohmann::json::parse(read_file(folder.path() / "config.json"))["dtype"], "float32");
  const model::Decoder loaded = load_result(folder.path(), inputs.base, false, at::kFloat);
  EXPECT_EQ(evaluate(loaded, tiny_dataset(5), kOrder).loss, evaluate(model, tiny_dataset(5), kOrder).loss);
}

TEST(SaveAdapter, RefusesNonFiniteWeightsAndWritesNothing) {
  const TemporaryFolder folder;
  const model::Decoder model = tiny_lora(at::kFloat);
  model.trainable().back().tensor.data().fill_(std::numeric_limits<float>::infinity());
  EXPECT_EQ(code_of([&] { save_adapter(folder.path(), model, stories(), load_inputs(stories()).tokenizer); }),
            ExitCode::kDiverged);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(RequireVocabulary, NamesTheTokenThatTheModelDoesNotHave) {
  ModelInputs inputs = load_inputs(stories());
  EXPECT_NO_THROW(require_vocabulary(inputs, tiny_dataset(3)));
  inputs.spec.vocab_size = 100;
  try {
    require_vocabulary(inputs, tiny_dataset(3));
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kConfig);
    EXPECT_THAT(error.what(), testing::HasSubstr("record 0 holds token"));
  }
}

TEST(ModelCard, NamesBaseDataResultsAndUse) {
  config::Config config;
  config.model.model_name_or_path = "org/base-model";
  config.data.train_file = {"/somewhere/secret/records.jsonl"};
  config.training.seed = 7;
  const std::string card = model_card(config, {{"eval_perplexity", 3.5}});
  for (const char* part : {"base_model: \"org/base-model\"", "library_name: peft", "records.jsonl", "| seed | 7 |",
                           "| eval_perplexity | 3.5 |", "fettle generate"}) {
    EXPECT_THAT(card, testing::HasSubstr(part));
  }
  EXPECT_THAT(card, testing::Not(testing::HasSubstr("/somewhere")));
}

}  // namespace
}  // namespace fettle::train
