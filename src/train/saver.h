// SPDX-License-Identifier: Apache-2.0
/// Saving a run's state while it trains.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <future>
#include <vector>

#include "train/checkpoint.h"

namespace fettle::train {

class MetricsServer;
struct Run;

/// Keeps a run's state safe.
class Saver {
 public:
  Saver() = default;
  virtual ~Saver() = default;
  Saver(const Saver&) = delete;
  Saver& operator=(const Saver&) = delete;

  /// Begins to save the state; training may change it as soon as this returns. Throws what the save before it threw.
  virtual void save(const Run& run) = 0;
  /// Returns when the last state is on the disk; throws what saving it threw.
  virtual void finish() = 0;
  /// The most seconds that `save` and `finish` should take now: by the saves before, at first by the size.
  [[nodiscard]] virtual double expected_seconds() const = 0;
  /// true: each rank has one, and `save` is called on all of them at the same step or on none.
  [[nodiscard]] virtual bool takes_all_ranks() const { return false; }
};

/// Writes checkpoint folders, removes those beyond the limit, and knows how long that takes.
class CheckpointWriter {
 public:
  struct Options {
    std::filesystem::path output_dir;
    int64_t keep = 0;                  ///< save_total_limit
    double bytes = 0;                  ///< of one checkpoint, about: what the first save's time is expected by
    std::function<void()> check = {};  ///< called before and after a write; what it throws fails it
    MetricsServer* server = nullptr;   ///< told when a checkpoint is on the disk; null: nobody is
  };
  /// `add_files` runs in the thread that writes.
  CheckpointWriter(Options options, AddFiles add_files);

  /// Throws as write_checkpoint.
  void write(int64_t step, const nlohmann::json& state, const WriteTensors& write_tensors);
  void write(int64_t step, const Snapshot& snapshot);
  /// Of one write; any thread may ask.
  [[nodiscard]] double expected_seconds() const;

 private:
  void timed(int64_t step, const std::function<std::filesystem::path()>& action);

  Options options_;
  AddFiles add_files_;
  std::atomic<double> longest_{0};  ///< seconds of one write
};

/// Checkpoint folders in output_dir. The tensors are copied, and a thread of lower priority writes, hashes and fsyncs
/// the copy and removes checkpoints beyond the limit. The copy takes as much memory as the trained weights and the
/// optimizer's state; it is kept for the next save.
class CheckpointSaver : public Saver {
 public:
  /// `is_asynchronous` false: save returns when all is on the disk, and nothing is copied. `snapshot` gives the live
  /// tensors and the state of a run. `add_files` runs in the writing thread.
  CheckpointSaver(CheckpointWriter::Options options, bool is_asynchronous, std::function<Snapshot(const Run&)> snapshot,
                  AddFiles add_files);
  ~CheckpointSaver() override;

  void save(const Run& run) override;
  void finish() override;
  [[nodiscard]] double expected_seconds() const override;

 private:
  [[nodiscard]] Snapshot copy(const Snapshot& live);

  CheckpointWriter writer_;
  bool is_asynchronous_;
  std::function<Snapshot(const Run&)> snapshot_;
  std::vector<model::NamedTensor> weights_;  // the copies
  std::vector<model::NamedTensor> optimizer_;
  std::future<void> writing_;
  nlohmann::json saved_;  // the state that was saved last
};

}  // namespace fettle::train
