// SPDX-License-Identifier: Apache-2.0
#include "train/task_score.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>

#include "train/tiny.h"

namespace fettle::train {
namespace {

using Ids = std::vector<int32_t>;

data::ScoredContinuation scored(Ids context, Ids continuation) {
  Ids input = std::move(context);
  input.insert(input.end(), continuation.begin(), continuation.end() - 1);
  return {std::move(input), std::move(continuation)};
}

data::Task some_task() {
  data::Task task;
  task.items.push_back(
      {{"ab", "a", "é"}, 1, {scored({1, 5, 9}, {7}), scored({1, 5, 9}, {8}), scored({1, 5, 9}, {8, 6})}});
  task.items.push_back({{"x", "y"}, 0, {scored({1}, {300, 4, 5}), scored({1, 30}, {17, 18})}});
  task.items.push_back({{"x", "y"}, 1, {scored({1, 2, 3, 4, 5, 6, 7}, {9}), scored({1, 2, 3, 4, 5, 6, 7}, {10})}});
  return task;
}

/// Sum over the continuation of the log-softmax in a forward of its own.
double likelihood(const model::Decoder& model, const data::ScoredContinuation& choice) {
  const at::NoGradGuard no_gradients;
  const auto length = static_cast<int64_t>(choice.input.size());
  const model::Batch batch{at::tensor(std::vector<int64_t>(choice.input.begin(), choice.input.end()), at::kLong),
                           {},
                           at::arange(length, at::kLong),
                           {0, static_cast<int32_t>(length)}};
  const at::Tensor logits = model.logits(model.hidden_states(batch)).log_softmax(-1);
  const auto count = static_cast<int64_t>(choice.continuation.size());
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += logits[length - count + i][choice.continuation[static_cast<size_t>(i)]].item<double>();
  }
  return sum;
}

TEST(Score, IsEachContinuationsOwnWhateverTheBatch) {
  const model::Decoder model = tiny_lora(at::kFloat);
  const data::Task task = some_task();
  for (const int64_t tokens : {1, 10, 1000}) {
    const auto scores = score(model, task, {tokens, 8});
    ASSERT_EQ(scores.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      for (size_t choice = 0; choice < scores[i].size(); ++choice) {
        EXPECT_NEAR(scores[i][choice].log_likelihood, likelihood(model, task.items[i].encodings[choice]), 1e-4);
      }
    }
  }
}

TEST(Score, KnowsWhatTheModelWouldSayItself) {
  const model::Decoder model = tiny_lora(at::kFloat);
  data::Task task;
  const Ids context = {1, 5, 9};
  const at::NoGradGuard no_gradients;
  const model::Batch batch{at::tensor(std::vector<int64_t>{1, 5, 9}, at::kLong), {}, at::arange(3, at::kLong), {0, 3}};
  const auto likeliest = static_cast<int32_t>(model.logits(model.hidden_states(batch))[2].argmax().item<int64_t>());
  task.items.push_back({{"a", "b"}, 0, {scored(context, {likeliest}), scored(context, {likeliest == 7 ? 8 : 7})}});
  const auto scores = score(model, task, {});
  EXPECT_TRUE(scores[0][0].is_greedy);
  EXPECT_FALSE(scores[0][1].is_greedy);
}

// Item 0: choice 0 is likeliest, not the gold one. Item 1: a tie, of which the first counts. Item 2: the wrong one.
TEST(TaskResults, CountTheLikeliestChoiceByLength) {
  const data::Task task = some_task();
  const std::vector<std::vector<ChoiceScore>> scores = {
      {{-1.4, false}, {-3, true}, {-1.5, false}}, {{-2, true}, {-2, false}}, {{-1, false}, {-4, false}}};
  const nlohmann::ordered_json results = task_results(task, scores);
  EXPECT_EQ(results["items"], 3);
  EXPECT_DOUBLE_EQ(results["acc"], 1.0 / 3);
  EXPECT_DOUBLE_EQ(results["acc_stderr"], 1.0 / 3);  // √(Σ(x - 1/3)² / 2) / √3
  const auto lines = task_lines(task, scores);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[1]["acc"], 1);
  EXPECT_EQ(lines[0]["acc"], 0);
  EXPECT_EQ(lines[0]["is_greedy"], nlohmann::json({false, true, false}));
  EXPECT_EQ(lines[0]["tokens"], nlohmann::json({1, 1, 2}));
  EXPECT_EQ(lines[2]["log_likelihoods"], nlohmann::json({-1.0, -4.0}));
}

TEST(TaskResults, DivideByCharactersOrBytes) {
  data::Task task;
  task.items.push_back({{"aaaa", "éé"}, 1, {}});
  // whole: -3.5 and -3; per character: -0.875 and -1.5; per byte: -0.875 and -0.75
  const std::vector<std::vector<ChoiceScore>> scores = {{{-3.5, false}, {-3, false}}};
  const nlohmann::ordered_json results = task_results(task, scores);
  EXPECT_EQ(results["acc"], 1.0);
  EXPECT_EQ(results["acc_norm"], 0.0);
  EXPECT_EQ(results["acc_bytes"], 1.0);
  EXPECT_TRUE(results["acc_stderr"].is_null());
}

}  // namespace
}  // namespace fettle::train
