// SPDX-License-Identifier: Apache-2.0
/// Calls that may never return, made so that the caller always does.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

namespace fettle::dist {

/// Whether something under way has ended, and how. Threads may share it.
class Progress {
 public:
  void finish(std::exception_ptr error = {});
  /// Whether it ends within `limit`.
  [[nodiscard]] bool wait_for(std::chrono::milliseconds limit) const;
  /// What it failed by; empty as long as it has not.
  [[nodiscard]] std::exception_ptr error() const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool ended_ = false;
  std::exception_ptr error_;
};

/// One thread that makes calls in their order. A call must own what it refers to: it may outlive its caller.
class Worker {
 public:
  Worker();
  /// Waits for the thread if it is idle. A call that has not returned is left to its thread.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  std::shared_ptr<Progress> start(std::function<void()> call);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

/// The first line of what an exception says, without libtorch's stack trace.
std::string reason(const std::exception_ptr& error);

}  // namespace fettle::dist
