// SPDX-License-Identifier: Apache-2.0
/// Micro-batches grouped into optimizer steps, and how many steps a run has.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "config/config.h"
#include "data/batch.h"
#include "data/dataset.h"

namespace fettle::train {

/// The position in the data: the micro-batch that comes next.
struct Cursor {
  int64_t epoch = 0;
  int64_t batch = 0;
};

/// One optimizer step as one rank sees it: its own micro-batches, and the counts of all.
struct Step {
  std::vector<data::Batch> batches;
  /// Of the numbers drawn for each of them (dropout): a function of the run's seed and the batch's place in the data,
  /// so that a resumed run, another number of ranks and gradient checkpointing all draw the same.
  std::vector<uint64_t> seeds;
  int64_t rounds = 0;                     ///< micro-batches of the rank that has most: rank 0
  std::vector<int64_t> document_lengths;  ///< of all ranks' documents
  int64_t tokens = 0;                     ///< of all ranks
  int64_t target_tokens = 0;              ///< of all ranks: what the step's loss is divided by
  bool ends_epoch = false;
};

/// Which of a step's micro-batches a process takes.
struct Share {
  int64_t rank = 0;
  int64_t ranks = 1;
};

/// Deals out the steps of a dataset. `batches_per_step` micro-batches make a step, whatever the number of ranks; the
/// last of an epoch may have fewer, as in transformers. Rank r of R takes the micro-batches r, r + R, … of a step, so
/// the last ones may be fewer for some ranks, or none. Holds no position: the same cursor always gives the same step.
class StepLoader {
 public:
  StepLoader(data::TokenDataset dataset, const data::OrderOptions& options, int64_t batches_per_step, Share share = {});

  /// The step at `cursor`, which is moved to the next one. Throws Error{kData} if none of its tokens is a target.
  Step next(Cursor& cursor);

  [[nodiscard]] int64_t steps_per_epoch();
  /// Passes over the data done at `cursor`, with the fraction.
  [[nodiscard]] double epochs(const Cursor& cursor);

 private:
  /// The order of `epoch`; the newest is kept.
  const data::BatchOrder& order(int64_t epoch);

  data::TokenDataset dataset_;
  data::OrderOptions options_;
  int64_t batches_per_step_;
  Share share_;
  int64_t epoch_ = -1;
  std::optional<data::BatchOrder> order_;
};

/// More steps than any run takes; a double and an int64 hold it and its neighbours exactly.
inline constexpr int64_t kMostSteps = 1'000'000'000'000;

/// max_steps, else num_train_epochs (which may be a fraction) in steps, rounded up: 1 … kMostSteps. Throws
/// Error{kUsage} for more.
int64_t total_steps(const config::TrainingConfig& options, int64_t steps_per_epoch);

/// logging_steps and its like: a number of steps, or below 1 a share of all steps, rounded up: 1 … kMostSteps.
int64_t interval_steps(double value, int64_t total_steps);

}  // namespace fettle::train
