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
  void count(const Step& step, const Cursor& next);
  /// What it took, once that is known.
  void took(double seconds);
  /// Whether it is the last that counts for no throughput: what it has left to do must not count for the next.
  [[nodiscard]] bool ends_warmup() const { return warmup_steps_ == 1; }
  /// Whether there is a metrics line for the step that was counted last.
  [[nodiscard]] bool is_due() const;
  /// Shows the step that was counted last. Throws Error{kIo}.
  void show();
  void evaluated(const Evaluation& evaluation);

 private:
  [[nodiscard]] StepMetrics metrics() const;
  void warn_of_new_graphs(int64_t compiled);
  Run& run_;
  Progress progress_;
  int64_t logging_steps_;
  // Since the last metrics line.
  int64_t tokens_ = 0;
  double seconds_ = 0;
  double flops_ = 0;
  int64_t warmup_steps_;       ///< still to come
  int64_t known_graphs_ = -1;  ///< those that are no surprise; -1: not known yet
};

}  // namespace fettle::train
