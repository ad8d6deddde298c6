// SPDX-License-Identifier: Apache-2.0
#include "hub/transfer_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/log.h"

namespace fettle::hub {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kMoment = 1.0;  // seconds
constexpr auto kTerminalPause = std::chrono::milliseconds(200);
constexpr auto kLogPause = std::chrono::seconds(5);

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::string time_text(double seconds) {
  const auto whole = static_cast<int64_t>(seconds);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

}  // namespace

std::string bytes_text(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value >= 1e9) return fmt::format("{:.2f} GB", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.1f} MB", value / 1e6);
  if (value >= 1e3) return fmt::format("{:.0f} kB", value / 1e3);
  return fmt::format("{} bytes", bytes);
}

TransferProgress::TransferProgress(std::string what, int64_t done, int64_t total)
    : what_(std::move(what)),
      before_(done),
      total_(total),
      on_terminal_(::isatty(STDERR_FILENO) != 0),
      done_(done),
      began_(Clock::now()) {
  const std::string rest = done > 0 ? fmt::format(", {} of them are here already", bytes_text(done)) : "";
  log::info("downloading {}: {}{}", what_, bytes_text(total), rest);
  thread_ = std::jthread([this](const std::stop_token& stop) { show(stop); });
}

TransferProgress::~TransferProgress() {
  thread_.request_stop();
  thread_.join();
  const double seconds = seconds_since(began_);
  const int64_t bytes = done_ - before_;
  if (seconds < kMoment || done_ != total_) return;
  log::info("downloaded {}: {} in {} ({}/s)", what_, bytes_text(bytes), time_text(seconds),
            bytes_text(static_cast<int64_t>(static_cast<double>(bytes) / seconds)));
}

std::string TransferProgress::line() const {
  const int64_t done = done_;
  const double rate = static_cast<double>(done - before_) / std::max(seconds_since(began_), 1e-3);
  const std::string left =
      rate > 1 ? fmt::format(", {} left", time_text(static_cast<double>(total_ - done) / rate)) : std::string();
  return fmt::format("{}: {} of {}, {}/s{}", what_, bytes_text(done), bytes_text(total_),
                     bytes_text(static_cast<int64_t>(rate)), left);
}

void TransferProgress::show(const std::stop_token& stop) {
  std::mutex mutex;
  std::unique_lock hold(mutex);
  while (true) {
    if (on_terminal_) {
      ended_.wait_for(hold, stop, kTerminalPause, [] { return false; });
    } else {
      ended_.wait_for(hold, stop, kLogPause, [] { return false; });
    }
    if (stop.stop_requested()) break;
    if (on_terminal_) {
      log::draw("\r\x1b[K{}", line());
    } else {
      log::info("{}", line());
    }
  }
  if (on_terminal_) log::draw("\r\x1b[K");
}

}  // namespace fettle::hub
