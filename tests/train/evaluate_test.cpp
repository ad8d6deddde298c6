// SPDX-License-Identifier: Apache-2.0
#include "train/evaluate.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "base/file.h"
#include "data/storage.h"
#include "hub/tensor_source.h"
#include "train/loop.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

void expect_same(const Evaluation& actual, const Evaluation& expected) {
  EXPECT_NEAR(actual.loss, expected.loss, 1e-6 * expected.loss);
  EXPECT_EQ(actual.target_tokens, expected.target_tokens);
  EXPECT_EQ(actual.records, expected.records);
}

TEST(Evaluate, IsTheSamePackedOrNotInAnyBatchSizeAndByRecord) {
  const TemporaryFolder folder;
  const model::Decoder model = tiny_lora(at::kFloat, 0.5);  // dropout must be off
  const data::TokenDataset dataset = tiny_dataset(9);
  const Evaluation expected = evaluate(model, dataset, {64, false, false, 0, 1});
  EXPECT_EQ(expected.perplexity(), std::exp(expected.loss));
  EXPECT_EQ(expected.records, 9);
  EXPECT_EQ(expected.target_tokens, dataset.target_tokens());
  expect_same(evaluate(model, dataset, {64, true, false, 0, 4}), expected);
  expect_same(evaluate(model, dataset, {64, false, false, 0, 100}), expected);
  expect_same(evaluate_records(model, dataset, folder.path() / "records.jsonl"), expected);
}

TEST(Evaluate, RecordsAddUpToTheWhole) {
  const TemporaryFolder folder;
  const model::Decoder model = tiny_lora(at::kFloat);
  data::Example masked{{5, 6, 7}, {data::kIgnore, data::kIgnore, data::kIgnore}};
  data::Example trained{{5, 6, 7, 8}, {data::kIgnore, data::kIgnore, 7, 8}};
  const auto dataset = data::TokenDataset::from_examples({masked, trained});
  const Evaluation whole = evaluate_records(model, dataset, folder.path() / "records.jsonl");
  std::ifstream lines(folder.path() / "records.jsonl");
  std::string first;
  std::string second;
  std::getline(lines, first);
  std::getline(lines, second);
  EXPECT_EQ(nlohmann::json::parse(first),
            nlohmann::json::parse(R"({"record": 0, "loss": null, "target_tokens": 0, "tokens": 3})"));
  const nlohmann::json line = nlohmann::json::parse(second);
  EXPECT_EQ(line["record"], 1);
  EXPECT_EQ(line["target_tokens"], 2);
  EXPECT_EQ(line["tokens"], 4);
  EXPECT_EQ(line["loss"], whole.loss);
}

TEST(Evaluate, StopsAfterTheBatchesAskedFor) {
  const model::Decoder model = tiny_lora(at::kFloat);
  const Evaluation first = evaluate(model, tiny_dataset(9), {64, false, false, 0, 1}, 2);
  EXPECT_EQ(first.target_tokens, data::single_document(tiny_dataset(9), 0).target_tokens +
                                     data::single_document(tiny_dataset(9), 1).target_tokens);
}

TEST(Evaluate, RefusesNoTargetsAndNonFiniteModels) {
  const model::Decoder model = tiny_lora(at::kFloat);
  const auto masked = data::TokenDataset::from_examples({{{5, 6}, {data::kIgnore, data::kIgnore}}});
  EXPECT_EQ(code_of([&] { evaluate(model, masked, {64, true, false, 0, 1}); }), ExitCode::kData);
  model.trainable().back().tensor.data().fill_(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(code_of([&] { evaluate(model, tiny_dataset(2), {64, true, false, 0, 1}); }), ExitCode::kDiverged);
}

TEST(WriteLogits, HoldsEveryRecordsLogits) {
  const TemporaryFolder folder;
  const c10::NoGradGuard no_gradients;
  const model::Decoder model = tiny_lora(at::kFloat);
  const data::TokenDataset dataset = tiny_dataset(3);
  const auto file = folder.path() / "logits.safetensors";
  write_logits(model, dataset, file);
  const hub::TensorSource source = hub::TensorSource::open_safetensors(file);
  ASSERT_EQ(source.tensors().size(), 3u);
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const hub::TensorView* view = source.find("record." + std::to_string(i));
    ASSERT_NE(view, nullptr);
    EXPECT_EQ(view->shape, (std::vector<int64_t>{dataset.length(i), 512}));
    const at::Tensor stored = at::from_blob(const_cast<std::byte*>(view->bytes.data()), view->shape, at::kFloat);
    EXPECT_TRUE(at::allclose(stored, model.logits(model.hidden_states(to_tensors(data::single_document(dataset, i))))));
  }
}

// As bfd_split makes them: record 4 in two parts, 2 whole; records before, between and after gave no document.
data::TokenDataset split_dataset() {
  data::StorageBuilder builder;
  builder.add({{5, 6, 7}, {data::kIgnore, 6, 7}}, 2);
  builder.add({{8, 9, 10, 11}, {data::kIgnore, 9, 10, 11}}, 4);
  builder.add({{12, 13}, {data::kIgnore, 13}}, 4);
  return data::TokenDataset(builder.finish("split"));
}

TEST(Evaluate, ARecordInPartsIsOneRecord) {
  const TemporaryFolder folder;
  const model::Decoder model = tiny_lora(at::kFloat);
  const data::TokenDataset dataset = split_dataset();
  const auto file = folder.path() / "records.jsonl";
  const Evaluation whole = evaluate_records(model, dataset, file);
  EXPECT_EQ(whole.records, 2);
  EXPECT_EQ(evaluate(model, dataset, {64, true, false, 0, 1}).records, 2);
  std::ifstream lines(file);
  std::vector<nlohmann::json> records;
  for (std::string line; std::getline(lines, line);) records.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0]["record"], 2);
  EXPECT_EQ(records[1]["record"], 4);
  EXPECT_EQ(records[1]["target_tokens"], 4);
  EXPECT_EQ(records[1]["tokens"], 6);
  EXPECT_NEAR(2 * records[0]["loss"].get<double>() + 4 * records[1]["loss"].get<double>(), 6 * whole.loss, 1e-6);
}

TEST(WriteLogits, NamesTensorsByRecordAndPart) {
  const TemporaryFolder folder;
  const auto file = folder.path() / "logits.safetensors";
  write_logits(tiny_lora(at::kFloat), split_dataset(), file);
  const hub::TensorSource source = hub::TensorSource::open_safetensors(file);
  ASSERT_EQ(source.tensors().size(), 3u);
  EXPECT_EQ(source.find("record.2")->shape[0], 3);
  EXPECT_EQ(source.find("record.4.0")->shape[0], 4);
  EXPECT_EQ(source.find("record.4.1")->shape[0], 2);
}

TEST(WriteLogits, LeavesNothingBehindWhenItFails) {
  const TemporaryFolder folder;
  const model::Decoder model = tiny_lora(at::kFloat);
  const auto broken = data::TokenDataset::from_examples({{{5, 100'000}, {5, 100'000}}});  // not in the vocabulary
  EXPECT_ANY_THROW(write_logits(model, broken, folder.path() / "logits.safetensors"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace fettle::train
