// SPDX-License-Identifier: Apache-2.0
/// The training loop. Read loop.cpp first: `train` is the algorithm, everything else serves it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "config/config.h"
#include "model/decoder.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/schedule.h"
#include "train/state.h"
#include "train/steps.h"

namespace fettle::train {

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
  bool full_training = false;                      ///< all weights, not only an adapter
  double peak_flops = 0;                           ///< of this machine, per second; 0: not measured
  std::function<Evaluation()> evaluate = {};       ///< on the validation records; empty: there are none
  std::function<void(const Run&)> save = {};       ///< writes a checkpoint; empty: none are wanted
  std::optional<Evaluation> last_evaluation = {};  ///< set where the last step was evaluated
};

/// Trains from run.state to run.total_steps. Throws Error{kDiverged} at the first step whose loss or gradient is not
/// finite, before it changes a weight, and {kData} for a step without targets.
void train(Run& run);

/// Adds the gradients of the step's loss, the mean over all its target tokens, to those the model has, and returns that
/// loss. The model is in training mode only in here.
double forward_backward(model::Decoder& model, const Step& step);

/// A batch as tensors.
model::Batch to_tensors(const data::Batch& batch);

}  // namespace fettle::train
