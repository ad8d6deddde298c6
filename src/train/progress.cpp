// SPDX-License-Identifier: Apache-2.0
#include "train/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cmath>

#include "base/log.h"

namespace fettle::train {
namespace {

int terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string human_count(double value) {
  constexpr std::array<const char*, 6> kUnits = {"", "k", "M", "G", "T", "P"};
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 || value >= 99.95 ? fmt::format("{:.0f}{}", value, kUnits[unit])
                                     : fmt::format("{:.1f}{}", value, kUnits[unit]);
}

std::string human_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::ceil(seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
  return fmt::format("{}d{:02}h", whole / 86400, whole % 86400 / 3600);
}

std::string progress_line(const StepMetrics& metrics, int64_t total_steps, double seconds_left) {
  const std::string memory =
      metrics.memory_bytes > 0 ? fmt::format("  {}B", human_count(static_cast<double>(metrics.memory_bytes))) : "";
  return fmt::format("step {}/{}  loss {:.4f}  {} tok/s  ETA {}  lr {:.2e}  grad {:.2f}{}", metrics.step, total_steps,
                     metrics.loss, human_count(metrics.tokens_per_second), human_duration(seconds_left),
                     metrics.learning_rate, metrics.grad_norm, memory);
}

Progress::Progress(int64_t first_step, int64_t total_steps)
    : first_step_(first_step), total_steps_(total_steps), terminal_(::isatty(STDERR_FILENO) == 1) {}

double Progress::seconds_left(int64_t step) const {
  const int64_t done = step - first_step_;
  if (done <= 0) return 0;
  const std::chrono::duration<double> elapsed = Clock::now() - start_;
  return elapsed.count() / static_cast<double>(done) * static_cast<double>(total_steps_ - step);
}

void Progress::draw(const StepMetrics& metrics) {
  if (!terminal_ || Clock::now() - last_drawn_ < std::chrono::milliseconds(100)) return;
  last_drawn_ = Clock::now();
  drawn_ = true;
  std::string line = progress_line(metrics, total_steps_, seconds_left(metrics.step));
  line.resize(std::min<size_t>(line.size(), static_cast<size_t>(terminal_width() - 1)));
  log::draw("\r\x1b[K{}", line);
}

void Progress::print(const StepMetrics& metrics) {
  clear();
  log::info("{}", progress_line(metrics, total_steps_, seconds_left(metrics.step)));
}

void Progress::clear() {
  if (!drawn_) return;
  log::draw("\r\x1b[K");
  drawn_ = false;
}

}  // namespace fettle::train
