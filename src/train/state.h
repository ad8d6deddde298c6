// SPDX-License-Identifier: Apache-2.0
/// Where a run is, as a few numbers.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "train/steps.h"

namespace fettle::train {

/// With the weights, the optimizer's and the schedule's state this is all that a checkpoint needs: resuming continues
/// bit for bit. There is no state of a random generator: what is drawn is a function of the place in the data.
struct TrainingState {
  int64_t step = 0;              ///< updates done
  int64_t batches_per_step = 0;  ///< micro-batches of all ranks, as the run began: another number of ranks keeps it
  Cursor cursor;
  double epoch = 0;    ///< passes over the data done, with the fraction
  int64_t tokens = 0;  ///< trained on so far, prompts included
  int64_t target_tokens = 0;
  double loss_sum = 0;                 ///< of all steps' losses
  double window_loss_sum = 0;          ///< of the steps that no metrics line covers yet
  int64_t window_steps = 0;            ///< their number
  double seconds = 0;                  ///< spent in steps; evaluation and checkpoints left out
  double warmup_seconds = 0;           ///< of those, in steps that count for no throughput
  int64_t warmup_tokens = 0;           ///< of those steps
  std::vector<double> gradient_norms;  ///< of the last steps, for grad_spike_limit; empty where that is 0
  bool owes_evaluation = false;        ///< of this step: a signal stopped the run before it was done
};

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Cursor, epoch, batch)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(TrainingState, step, batches_per_step, cursor, epoch, tokens, target_tokens,
                                   loss_sum, window_loss_sum, window_steps, seconds, warmup_seconds, warmup_tokens,
                                   gradient_norms, owes_evaluation)

}  // namespace fettle::train
