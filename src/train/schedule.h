// SPDX-License-Identifier: Apache-2.0
/// Learning-rate schedules: every lr_scheduler_type of transformers 5.23, with its lr_scheduler_kwargs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "config/config.h"

namespace fettle::train {

/// Warm-up steps as transformers counts them: warmup_steps >= 1 is a number of steps, a positive warmup_steps < 1 or
/// else warmup_ratio is a share of all steps, rounded up.
int64_t warmup_steps(const config::TrainingConfig& options, int64_t total_steps);

/// What a schedule is made of; a step is one update of the weights.
struct ScheduleOptions {
  std::string type = "cosine";
  nlohmann::json arguments = nlohmann::json::object();  ///< lr_scheduler_kwargs
  double learning_rate = 0;                             ///< the peak
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;
};

/// The learning rate of each step. All types but reduce_lr_on_plateau and greedy are pure functions of the step; these
/// two change at each evaluation and carry state.
class Schedule {
 public:
  /// Throws Error{kUsage} for an unknown type, an unknown or malformed argument, {kConfig} for contradicting ones.
  explicit Schedule(const ScheduleOptions& options);

  /// Parses TrainingConfig's options; `learning_rate` is the resolved one (its default depends on the kind of
  /// training).
  static Schedule from_config(const config::TrainingConfig& options, double learning_rate, int64_t total_steps);

  /// The rate that update number `step` (0-based) uses, as LambdaLR gives it.
  [[nodiscard]] double learning_rate(int64_t step) const;

  /// Whether the schedule needs evaluations while training.
  [[nodiscard]] bool follows_evaluation() const { return adaptive_ != nullptr; }
  /// Tells an adaptive schedule the newest evaluation loss; the others ignore it.
  void observe(double eval_loss);

  /// State of an adaptive schedule, null for the others. Restoring gives the same rates from then on.
  [[nodiscard]] nlohmann::json state() const;
  void restore(const nlohmann::json& state);

  /// A schedule whose rate follows a metric (torch's ReduceLROnPlateau, transformers' GreedyLR).
  class Adaptive {
   public:
    virtual ~Adaptive() = default;
    [[nodiscard]] virtual double learning_rate() const = 0;
    virtual void observe(double metric) = 0;
    [[nodiscard]] virtual nlohmann::json state() const = 0;
    virtual void restore(const nlohmann::json& state) = 0;
  };

 private:
  double peak_;
  std::function<double(int64_t)> factor_;  ///< of a pure schedule: share of the peak at a step
  std::shared_ptr<Adaptive> adaptive_;
};

}  // namespace fettle::train
