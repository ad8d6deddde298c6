// SPDX-License-Identifier: Apache-2.0
/// Progress for people on standard error: one live line on a terminal, else a plain line each logging step.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "train/metrics.h"

namespace fettle::train {

/// "1.6k", "23M": three digits at most and a decimal unit.
std::string human_count(double value);
/// "58s", "3m05s", "2h07m", "4d03h".
std::string human_duration(double seconds);
/// One step as text: "step 120/1000  loss 1.234  1.6k tok/s  ETA 3m05s  lr 2.00e-04  grad 0.42  1.9 GB".
std::string progress_line(const StepMetrics& metrics, int64_t total_steps, double seconds_left);

class Progress {
 public:
  /// `first_step`: steps done before this process, which its rate must not count.
  Progress(int64_t first_step, int64_t total_steps);

  /// Redraws the live line, at most ten times a second; nothing when standard error is not a terminal.
  void draw(const StepMetrics& metrics);
  /// Prints a line that stays.
  void print(const StepMetrics& metrics);
  /// Wipes the live line, so that log lines can follow.
  void clear();
  /// Until the last step, at the rate of this process so far.
  [[nodiscard]] double seconds_left(int64_t step) const;

 private:
  using Clock = std::chrono::steady_clock;
  int64_t first_step_;
  int64_t total_steps_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_drawn_;
};

}  // namespace fettle::train
