// SPDX-License-Identifier: Apache-2.0
#include "hub/lock_wait.h"

#include <chrono>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "base/stop_signal.h"

namespace fettle::hub {

void wait_for_lock(FileLock& lock, const std::string& what, const std::function<bool()>& is_needless) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kPause(100);
  constexpr std::chrono::minutes kSilence(1);
  auto told = Clock::time_point();
  while (!lock.try_lock() && !is_needless()) {
    if (stop_signal() != 0) {
      throw Error(ExitCode::kPreempted, "stopped while waiting for another process", "run the same command again");
    }
    if (told == Clock::time_point() || Clock::now() - told > kSilence) {
      log::info("waiting for another process that {}", what);
      told = Clock::now();
    }
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace fettle::hub
