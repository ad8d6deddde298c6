// SPDX-License-Identifier: Apache-2.0
#include "train/loop.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <sstream>

#include "base/file.h"
#include "device/device.h"
#include "ops/reference.h"
#include "train/checkpoint.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

/// The gradient of one optimizer step, all parameters in one vector.
at::Tensor step_gradient(const data::OrderOptions& order, int64_t accumulation) {
  model::Decoder model = tiny_lora(at::kFloat);
  StepLoader loader(tiny_dataset(8), order, accumulation);
  Cursor cursor;
  const Step step = loader.next(cursor);
  EXPECT_TRUE(step.ends_epoch);
  forward_backward(model, step);
  std::vector<at::Tensor> gradients;
  for (const model::NamedTensor& parameter : model.trainable()) gradients.push_back(parameter.tensor.grad().flatten());
  return at::cat(gradients);
}

void expect_close(const at::Tensor& actual, const at::Tensor& expected) {
  EXPECT_GT(expected.norm().item<double>(), 1e-3);
  EXPECT_LE(actual.sub(expected).norm().item<double>(), 1e-6 * expected.norm().item<double>());
}

data::OrderOptions unpacked(int64_t batch_size) {
  return {64, false, true, 3, batch_size};
}

TEST(StepGradient, IsTheSameForEveryAccumulation) {
  const at::Tensor expected = step_gradient(unpacked(8), 1);
  expect_close(step_gradient(unpacked(1), 8), expected);
  expect_close(step_gradient(unpacked(2), 4), expected);
}

TEST(StepGradient, IsTheSamePackedOrNot) {
  const at::Tensor expected = step_gradient(unpacked(8), 1);
  expect_close(step_gradient({64, true, true, 3, 8}, 1), expected);
  expect_close(step_gradient({64, true, true, 3, 1}, 8), expected);
}

/// Everything a run needs, as fine_tune puts it together.
class TinyRun {
 public:
  TinyRun(at::ScalarType type, const std::filesystem::path& folder, double dropout = 0.2)
      : folder_(folder), model_(tiny_lora(type, dropout)) {
    std::filesystem::create_directories(folder);
    options_.max_steps = 5;
    options_.logging_steps = 1;
    options_.learning_rate = 1e-2;
    options_.warmup_ratio = 0.2;
    metrics_.emplace(folder / "metrics.jsonl", false);
    run_.emplace(Run{.options = options_,
                     .model = model_,
                     .parameters = model_.trainable(),
                     .loader = StepLoader(tiny_dataset(15), {64, false, true, 3, 2}, 2),
                     .total_steps = 5,
                     .optimizer = AdamW(model_.trainable(), options_),
                     .schedule = Schedule::from_config(options_, 1e-2, 5),
                     .metrics = *metrics_});
  }

  Run& run() { return *run_; }
  /// The same run with other options, which outlive it, and so many steps.
  [[nodiscard]] Run with(const config::TrainingConfig& options, int64_t steps) {
    return {.options = options,
            .model = model_,
            .parameters = run_->parameters,
            .loader = run_->loader,
            .total_steps = steps,
            .optimizer = run_->optimizer,
            .schedule = run_->schedule,
            .metrics = *metrics_};
  }
  [[nodiscard]] Snapshot snapshot() const {
    return {"adapter_model.safetensors", run_->parameters, run_->optimizer.state(), {{"state", run_->state}}};
  }
  void save_every_step() {
    options_.save_steps = 1;
    saver_.emplace(
        CheckpointWriter::Options{.output_dir = folder_}, true, [this](const Run&) { return snapshot(); }, AddFiles());
    run_->saver = &*saver_;
  }
  void resume(const std::filesystem::path& checkpoint) {
    run_->state = read_checkpoint_state(checkpoint).at("state").get<TrainingState>();
    restore_checkpoint(checkpoint, snapshot());
    model_.refresh_compute_weights();
  }
  [[nodiscard]] std::vector<at::Tensor> weights() const {
    std::vector<at::Tensor> copies;
    for (const model::NamedTensor& parameter : run_->parameters) copies.push_back(parameter.tensor.detach().clone());
    return copies;
  }
  /// step → loss and gradient norm, from metrics.jsonl.
  [[nodiscard]] std::map<int64_t, std::pair<double, double>> losses() const {
    std::istringstream lines(read_file(folder_ / "metrics.jsonl"));
    std::map<int64_t, std::pair<double, double>> found;
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json values = nlohmann::json::parse(line);
      found[values["step"]] = {values["loss"], values["grad_norm"]};
    }
    return found;
  }

 private:
  std::filesystem::path folder_;
  config::TrainingConfig options_;
  model::Decoder model_;
  std::optional<MetricsLog> metrics_;
  std::optional<Run> run_;
  std::optional<CheckpointSaver> saver_;
};

/// Notes the steps that are saved.
class NotingSaver : public Saver {
 public:
  void save(const Run& run) override {
    steps.push_back(run.state.step);
    owes_evaluation = run.state.owes_evaluation;
  }
  void finish() override { ++finished; }
  [[nodiscard]] double expected_seconds() const override { return 0; }
  std::vector<int64_t> steps;
  bool owes_evaluation = false;  ///< the last one that was saved
  int finished = 0;
};

/// As after a signal that came while the last step was being evaluated.
TEST(Training, WhatEndedBeforeItsLastEvaluationIsSavedAgainWithIt) {
  const TemporaryFolder folder;
  TinyRun tiny(at::kFloat, folder.path());
  NotingSaver saver;
  auto& run = tiny.run();
  run.saver = &saver;
  run.evaluate = [] { return Evaluation{.loss = 1.5, .target_tokens = 1, .records = 1}; };
  run.state.step = run.total_steps;
  run.state.owes_evaluation = true;
  train(run);
  EXPECT_EQ(saver.steps, std::vector{run.total_steps});
  EXPECT_FALSE(saver.owes_evaluation);
  EXPECT_TRUE(run.last_evaluation.has_value());
}

TEST(Training, MayGoOnWithoutTheRecordsOfAnEvaluationThatIsOwed) {
  const TemporaryFolder folder;
  TinyRun tiny(at::kFloat, folder.path());
  auto& run = tiny.run();
  run.state.owes_evaluation = true;
  train(run);
  EXPECT_EQ(run.state.step, run.total_steps);
}

class Resume : public testing::TestWithParam<at::ScalarType> {};

TEST_P(Resume, AtAnyStepContinuesBitForBit) {
  const TemporaryFolder folder;
  TinyRun whole(GetParam(), folder.path() / "whole");
  whole.save_every_step();
  train(whole.run());
  const auto expected_weights = whole.weights();
  const auto expected_losses = whole.losses();
  ASSERT_EQ(expected_losses.size(), 5u);
  ASSERT_EQ(whole.run().state.cursor.epoch, 1) << "the run must cross the end of an epoch";
  for (int64_t step = 1; step < 5; ++step) {
    SCOPED_TRACE(step);
    TinyRun resumed(GetParam(), folder.path() / ("from-" + std::to_string(step)));
    resumed.resume(folder.path() / "whole" / ("checkpoint-" + std::to_string(step)));
    train(resumed.run());
    const auto weights = resumed.weights();
    for (size_t i = 0; i < weights.size(); ++i) EXPECT_TRUE(at::equal(weights[i], expected_weights[i])) << i;
    const auto losses = resumed.losses();
    EXPECT_EQ(losses.size(), static_cast<size_t>(5 - step));
    for (const auto& [at_step, values] : losses) EXPECT_EQ(values, expected_losses.at(at_step)) << at_step;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Resume, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& test) { return test.param == at::kFloat ? "float32" : "bfloat16"; });

// Five steps with the kernels and with their composite twins: float32 roundings, grown by five updates.
TEST(Train, PlainOperationsGiveTheSameLosses) {
  const TemporaryFolder folder;
  TinyRun fused(at::kFloat, folder.path() / "fused", 0);
  train(fused.run());
  const ops::testing::WithoutFusedOps twins;
  TinyRun plain(at::kFloat, folder.path() / "plain", 0);
  train(plain.run());
  const auto expected = fused.losses();
  ASSERT_EQ(expected.size(), 5u);
  for (const auto& [step, values] : plain.losses()) {
    EXPECT_NEAR(values.first, expected.at(step).first, 1e-5 * expected.at(step).first) << step;
    EXPECT_NEAR(values.second, expected.at(step).second, 1e-4 * expected.at(step).second) << step;
  }
  EXPECT_NE(plain.losses(), expected) << "the same bits: it was the same path";
}

TEST(Train, StopsAtANonFiniteLossBeforeChangingAWeight) {
  const TemporaryFolder folder;
  TinyRun tiny(at::kFloat, folder.path());
  tiny.run().parameters.back().tensor.data().fill_(std::numeric_limits<float>::quiet_NaN());
  const at::Tensor before = tiny.weights().front();
  try {
    train(tiny.run());
    FAIL() << "went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kDiverged);
    EXPECT_THAT(error.what(), testing::HasSubstr("step 1 "));
    EXPECT_THAT(error.what(), testing::HasSubstr("learning rate"));
  }
  EXPECT_TRUE(at::equal(tiny.weights().front(), before));
}

TEST(Train, EvaluatesAndSavesWhenDue) {
  const TemporaryFolder folder;
  TinyRun tiny(at::kFloat, folder.path());
  std::vector<int64_t> evaluated;
  NotingSaver saver;
  config::TrainingConfig options = tiny.run().options;
  options.eval_strategy = "epoch";
  options.save_steps = 2;
  train::Run run = tiny.with(options, 5);
  run.evaluate = [&] {
    evaluated.push_back(run.state.step);
    return Evaluation{1.0, 1, 1};
  };
  run.saver = &saver;
  train(run);
  EXPECT_THAT(evaluated, testing::ElementsAre(4));  // 15 documents, 2 a batch, 2 batches a step
  EXPECT_THAT(saver.steps, testing::ElementsAre(2, 4, 5));
  EXPECT_EQ(saver.finished, 1) << "the last one must be on the disk when training returns";
}

TEST(Train, SavesAfterSaveMinutesToo) {
  const TemporaryFolder folder;
  TinyRun tiny(at::kFloat, folder.path());
  NotingSaver saver;
  config::TrainingConfig options = tiny.run().options;
  options.save_minutes = 1e-9;
  train::Run run = tiny.with(options, 3);
  run.saver = &saver;
  train(run);
  EXPECT_THAT(saver.steps, testing::ElementsAre(1, 2, 3));
}

TEST(Train, StopsAtAGradientSpikeWithTheStateBeforeItSaved) {
  const TemporaryFolder folder;
  TinyRun tiny(at::kFloat, folder.path());
  NotingSaver saver;
  config::TrainingConfig options = tiny.run().options;
  options.grad_spike_limit = 3;
  options.save_strategy = "no";
  train::Run run = tiny.with(options, 20);
  run.schedule = Schedule::from_config(options, 1e-6, 20);
  run.saver = &saver;
  run.state.step = 15;
  run.state.gradient_norms.assign(12, 1e-9);
  const at::Tensor before = tiny.weights().front();
  try {
    train(run);
    FAIL() << "went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kDiverged);
    EXPECT_THAT(error.what(), testing::HasSubstr("step 16"));
  }
  EXPECT_THAT(saver.steps, testing::ElementsAre(15));
  EXPECT_TRUE(at::equal(tiny.weights().front(), before));
  run.state.gradient_norms.assign(12, 1e9);
  run.total_steps = 17;
  train(run);
  EXPECT_EQ(run.state.gradient_norms.size(), 14u);
}

TEST(ForwardBackward, DrawsTheSameDropoutForABatchWhereverItIsRun) {
  model::Decoder model = tiny_lora(at::kFloat, 0.5);
  StepLoader whole(tiny_dataset(12), {64, false, true, 3, 2}, 4);
  Cursor begin;
  const Step step = whole.next(begin);
  ASSERT_EQ(step.batches.size(), 4u);
  double total = 0;
  for (int64_t rank = 1; rank >= 0; --rank) {
    StepLoader part(tiny_dataset(12), {64, false, true, 3, 2}, 4, {rank, 2});
    Cursor again;
    const Step share = part.next(again);
    EXPECT_EQ(share.batches.size(), 2u);
    EXPECT_EQ(share.target_tokens, step.target_tokens);
    total += sum(forward_backward(model, share));
  }
  EXPECT_NEAR(total, sum(forward_backward(model, step)), 1e-6 * total);
  Cursor later{.epoch = 1, .batch = 0};
  EXPECT_NE(whole.next(later).seeds, step.seeds);
}

}  // namespace
}  // namespace fettle::train
