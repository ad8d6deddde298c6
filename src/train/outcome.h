// SPDX-License-Identifier: Apache-2.0
/// What steps came to: their losses and gradient norms are read, checked and counted.
///
/// On a device that compiles graphs they stay there until somebody needs them (a metrics line, an evaluation, a save):
/// a value that is read within a step cuts its graph in two. A step that diverged then shows some steps later, but
/// before anything of it is saved.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace fettle::train {

struct Run;

/// Numbers of one step.
struct StepOutcome {
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
};

/// Those of a step that nobody has read yet.
struct UnreadOutcome {
  int64_t step = 0;  ///< counted from 1
  double learning_rate = 0;
  std::vector<at::Tensor> shares;  ///< of the step's loss, this rank's: scalars
  at::Tensor grad_norm;            ///< of all ranks: a scalar
};

/// Whether a run leaves its outcomes on the device. Not where each step's norm is needed: for grad_spike_limit, or
/// where a rank has the gradients of its own parameters alone.
bool defers_outcomes(const Run& run);

/// Throws Error{kDiverged} for a step that would spoil the weights: a loss or norm that is not finite, or a norm that
/// spikes (grad_spike_limit). Saves the state where that takes all ranks.
void check_outcome(Run& run, int64_t step, const StepOutcome& outcome);

/// Counts what check_outcome let pass into the run's state.
void count_outcome(Run& run, const StepOutcome& outcome);

/// Reads, checks and counts all of run.unread. All ranks call it at the same steps.
void read_outcomes(Run& run);

/// Saves what the last completed step left, unless that is done, and waits until it is on the disk. Nothing is unread.
void save_now(Run& run);
/// The same when training ends by an error, which is more important than one of saving.
void save_after_error(Run& run);

}  // namespace fettle::train
