// SPDX-License-Identifier: Apache-2.0
/// Asking again and again until a deadline, and saying so.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <thread>

#include "base/log.h"

namespace fettle::dist {

using Clock = std::chrono::steady_clock;

class Wait {
 public:
  /// Pauses grow from 10 ms to `longest_pause`.
  Wait(Clock::time_point deadline, std::chrono::milliseconds longest_pause)
      : deadline_(deadline), longest_pause_(longest_pause) {}

  /// Pauses; false if the deadline has passed. Every ten seconds it logs what `waits_for` returns.
  bool again(const std::function<std::string()>& waits_for) {
    const auto now = Clock::now();
    if (now >= deadline_) return false;
    if (now - last_line_ >= std::chrono::seconds(10)) {
      log::info("waiting for {}", waits_for());
      last_line_ = now;
    }
    std::this_thread::sleep_for(std::min<Clock::duration>(pause_, deadline_ - now));
    pause_ = std::min(2 * pause_, longest_pause_);
    return true;
  }

 private:
  Clock::time_point deadline_;
  std::chrono::milliseconds longest_pause_;
  std::chrono::milliseconds pause_{10};
  Clock::time_point last_line_ = Clock::now() - std::chrono::seconds(8);  // the first line after two seconds
};

}  // namespace fettle::dist
