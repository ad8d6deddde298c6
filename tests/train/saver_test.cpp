// SPDX-License-Identifier: Apache-2.0
#include "train/saver.h"

#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <limits>
#include <mutex>

#include "base/file.h"
#include "train/loop.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

namespace fs = std::filesystem;

/// One tensor and a step as a run, and a saver of it whose writing thread can be held.
class Saved {
 public:
  explicit Saved(const fs::path& folder, bool asynchronous = true)
      : metrics_(folder / "metrics.jsonl", false),
        model_(tiny_lora(at::kFloat)),
        run_{.options = options_,
             .model = model_,
             .parameters = {},
             .loader = StepLoader(tiny_dataset(4), {64, false, true, 3, 2}, 2),
             .total_steps = 9,
             .optimizer = AdamW({}, options_),
             .schedule = Schedule::from_config(options_, 1e-2, 9),
             .metrics = metrics_},
        saver_(
            {.output_dir = folder, .keep = 2, .bytes = 0}, asynchronous,
            [this](const Run& run) {
              return Snapshot{
                  "adapter_model.safetensors", {{"w", weight_}}, {{"w.step", weight_}}, {{"step", run.state.step}}};
            },
            [this](const fs::path&) { wait_until_released(); }) {}
  ~Saved() { release(); }
  Saved(const Saved&) = delete;
  Saved& operator=(const Saved&) = delete;

  void step_to(int64_t step, float value) {
    run_.state.step = step;
    weight_.fill_(value);
  }
  void save() { saver_.save(run_); }
  CheckpointSaver& saver() { return saver_; }
  void hold() { held_ = true; }
  void release() {
    const std::scoped_lock lock(mutex_);
    held_ = false;
    released_.notify_all();
  }

 private:
  void wait_until_released() {
    std::unique_lock lock(mutex_);
    released_.wait(lock, [this] { return !held_; });
  }

  std::mutex mutex_;
  std::condition_variable released_;
  bool held_ = false;
  config::TrainingConfig options_;
  MetricsLog metrics_;
  model::Decoder model_;
  at::Tensor weight_ = at::full({3}, 0.0, at::kFloat);
  Run run_;
  CheckpointSaver saver_;
};

float value_in(const fs::path& checkpoint) {
  const Snapshot read = {"adapter_model.safetensors",
                         {{"w", at::full({3}, -1, at::kFloat)}},
                         {{"w.step", at::full({3}, -1, at::kFloat)}},
                         {}};
  restore_checkpoint(checkpoint, read);
  return read.weights[0].tensor[0].item<float>();
}

TEST(CheckpointSaver, WritesWhatWasThereWhenItWasCalled) {
  const TemporaryFolder folder;
  Saved saved(folder.path());
  saved.hold();
  saved.step_to(1, 1);
  saved.save();
  saved.step_to(2, 2);  // training goes on while the thread writes
  EXPECT_FALSE(fs::exists(folder / "checkpoint-1"));
  saved.release();
  saved.saver().finish();
  EXPECT_EQ(why_broken(folder / "checkpoint-1"), "");
  EXPECT_EQ(value_in(folder / "checkpoint-1"), 1);
  saved.save();
  saved.step_to(3, 3);
  saved.save();
  saved.saver().finish();
  EXPECT_EQ(value_in(folder / "checkpoint-2"), 2);
  EXPECT_EQ(value_in(folder / "checkpoint-3"), 3);
  EXPECT_FALSE(fs::exists(folder / "checkpoint-1")) << "two are kept";
}

TEST(CheckpointSaver, SavesAStateOnce) {
  const TemporaryFolder folder;
  Saved saved(folder.path());
  saved.step_to(1, 1);
  saved.save();
  saved.saver().finish();
  const auto written = fs::last_write_time(folder / "checkpoint-1" / "manifest.json");
  saved.save();
  saved.saver().finish();
  EXPECT_EQ(fs::last_write_time(folder / "checkpoint-1" / "manifest.json"), written);
}

TEST(CheckpointSaver, ThrowsAtTheNextCallWhatTheThreadMet) {
  for (const bool asynchronous : {true, false}) {
    const TemporaryFolder folder;
    Saved saved(folder.path(), asynchronous);
    saved.step_to(1, std::numeric_limits<float>::infinity());
    const auto save = [&] {
      saved.save();
      saved.saver().finish();
    };
    EXPECT_EQ(code_of(save), ExitCode::kDiverged);
    saved.step_to(1, 1);
    save();  // the state was not saved, so it is not taken for saved
    EXPECT_EQ(value_in(folder / "checkpoint-1"), 1);
  }
}

TEST(CheckpointSaver, ExpectsTheTimeOfTheSavesBefore) {
  const TemporaryFolder folder;
  Saved saved(folder.path());
  const double first = saved.saver().expected_seconds();
  EXPECT_GT(first, 0);
  saved.hold();
  saved.step_to(1, 1);
  saved.save();
  EXPECT_GE(saved.saver().expected_seconds(), first) << "the one under way comes first";
  saved.release();
  saved.saver().finish();
  EXPECT_LT(saved.saver().expected_seconds(), 60);
}

TEST(WriteCheckpoint, ReplacesOneOfTheSameStep) {
  const TemporaryFolder folder;
  Saved saved(folder.path());
  saved.step_to(4, 1);
  saved.save();
  saved.saver().finish();
  Saved again(folder.path());
  again.step_to(4, 2);
  again.save();
  again.saver().finish();
  EXPECT_EQ(value_in(folder / "checkpoint-4"), 2);
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 1u);
}

}  // namespace
}  // namespace fettle::train
