// SPDX-License-Identifier: Apache-2.0
/// The training loop. Read loop.cpp first: `train` is the algorithm, everything else serves it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "config/config.h"
#include "dist/gradient_buckets.h"
#include "dist/group.h"
#include "model/decoder.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/outcome.h"
#include "train/profile.h"
#include "train/saver.h"
#include "train/schedule.h"
#include "train/shards.h"
#include "train/state.h"
#include "train/steps.h"

namespace fettle::train {

class MetricsServer;

/// What the loop works on. The references outlive it.
struct Run {
  const config::TrainingConfig& options;
  model::Decoder& model;
  std::vector<model::NamedTensor> parameters;  ///< model.trainable()
  StepLoader loader;
  int64_t total_steps;
  AdamW optimizer;
  Schedule schedule;
  MetricsLog& metrics;
  TrainingState state = {};
  bool full_training = false;                 ///< all weights, not only an adapter
  double peak_flops = 0;                      ///< of this machine, per second; 0: not measured
  std::function<Evaluation()> evaluate = {};  ///< on the validation records; empty: there are none
  Saver* saver = nullptr;                     ///< of checkpoints, on rank 0 or on all; null: none are wanted
  std::shared_ptr<dist::Group> group = dist::Group::alone();
  std::shared_ptr<dist::GradientBuckets> gradients = {};  ///< sums them over the ranks during the backward; or null:
  bool sums_gradients = false;                     ///< after it, which cuts no graph in two; or there is one rank
  MetricsServer* server = nullptr;                 ///< null: none is wanted
  std::shared_ptr<Profiler> profiler = {};         ///< null: none is wanted
  Shards shards = {};                              ///< what the ranks share out
  bool is_whole = true;                            ///< weights, optimizer and state are those after the same step
  std::optional<Evaluation> last_evaluation = {};  ///< set where the last step was evaluated
  std::vector<UnreadOutcome> unread = {};          ///< of the last steps, where outcomes are deferred
  StepOutcome last = {};                           ///< of the last step that is counted
};

/// Trains from run.state to run.total_steps. Whatever ends it before, the state after the last completed step is saved:
///  - SIGTERM, SIGINT or SIGHUP to any rank, after the micro-batch under way: Error{kPreempted} on all, once the state
///  is on the
///    disk;
///  - a step whose loss or gradient is not finite, or spikes (grad_spike_limit): {kDiverged} before it changes a
///  weight;
///  - a step without targets: {kData}; memory, disks and everything else as they throw.
void train(Run& run);

/// Adds the gradients of the rank's share of the step's loss, the mean over all target tokens, to those the model has,
/// and returns that share: scalars on the model's device, one a micro-batch. `gradients`, if there are any, sums over
/// the ranks what it can meanwhile. The model is in training mode only in here. After a stop signal the micro-batches
/// that are left are left out.
std::vector<at::Tensor> forward_backward(model::Decoder& model, const Step& step,
                                         dist::GradientBuckets* gradients = nullptr);

std::vector<at::Tensor> tensors_of(const std::vector<model::NamedTensor>& named);

/// The sum of scalars. It waits until a device has computed them.
double sum(const std::vector<at::Tensor>& scalars);

/// A batch as tensors.
model::Batch to_tensors(const data::Batch& batch);

}  // namespace fettle::train
