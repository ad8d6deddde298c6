// SPDX-License-Identifier: Apache-2.0
/// What the loop tells people and programs about its steps.
#pragma once

#include <chrono>
#include <cstdint>

#include "train/metrics.h"
#include "train/progress.h"
#include "train/steps.h"

namespace fettle::train {

struct Run;

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

/// The outcome of one step.
struct StepOutcome {
  double loss;
  double grad_norm;
  double learning_rate;
  double seconds;
};

/// Counts steps into run.state, writes metrics lines when they are due (logging_steps, the first and the last step) and
/// keeps the progress line alive.
class Report {
 public:
  explicit Report(Run& run);
  ~Report() { progress_.clear(); }
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  /// Counts a step that is done; `next` is the place in the data after it. From then on run.state belongs to the new
  /// weights.
  void count(const Step& step, const Cursor& next, const StepOutcome& outcome);
  /// Shows the step that was counted last. Throws Error{kIo}.
  void show();
  void evaluated(const Evaluation& evaluation);

 private:
  [[nodiscard]] StepMetrics metrics() const;
  [[nodiscard]] bool is_due() const;

  Run& run_;
  Progress progress_;
  int64_t logging_steps_;
  StepOutcome last_ = {};
  // Since the last metrics line.
  int64_t tokens_ = 0;
  double seconds_ = 0;
  double flops_ = 0;
};

}  // namespace fettle::train
