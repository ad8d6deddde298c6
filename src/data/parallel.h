// SPDX-License-Identifier: Apache-2.0
/// Work on all cores whose results come in the order of its inputs.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

namespace fettle::data {

/// consume(work(input)) for every input that `produce` gives until it gives none. `work` runs on `workers` threads at
/// once, `produce` and `consume` one at a time, `consume` in the inputs' order. The first exception in that order, of
/// any of the three, ends everything and is thrown; what was consumed before it is what one thread would have consumed.
template <typename Input, typename Output>
class OrderedPipeline {
 public:
  std::function<std::optional<Input>()> produce;
  std::function<Output(const Input&)> work;
  std::function<void(Output)> consume;

  void run(int64_t workers) {
    start(workers);
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  /// Returns when all is done. Where the system gives fewer threads, those do it; where it gives none, the caller's.
  void start(int64_t workers) {
    std::vector<std::jthread> threads;
    std::unique_lock lock(mutex_);  // they begin when all are there
    try {
      while (static_cast<int64_t>(threads.size()) < workers) threads.emplace_back([this] { work_until_done(); });
    } catch (const std::system_error&) {
    }
    in_flight_limit_ = std::max<int64_t>(1, static_cast<int64_t>(threads.size())) * 8;
    lock.unlock();
    if (threads.empty()) work_until_done();
  }

  using Result = std::variant<Output, std::exception_ptr>;

  void work_until_done() {
    std::unique_lock lock(mutex_);
    while (true) {
      progress_.wait(lock, [this] { return finished_ || taken_ - delivered_ < in_flight_limit_; });
      if (finished_) return;
      const int64_t index = taken_;
      std::optional<Input> input;
      std::exception_ptr failure;
      try {
        input = produce();
      } catch (...) {
        failure = std::current_exception();
      }
      if (!input) finished_ = true;
      if (!input && !failure) return progress_.notify_all();
      ++taken_;
      if (input) {
        lock.unlock();
        Result result = attempt(*input);
        lock.lock();
        ready_.emplace(index, std::move(result));
      } else {
        ready_.emplace(index, failure);
      }
      deliver();
      progress_.notify_all();
    }
  }

  Result attempt(const Input& input) const {
    try {
      return work(input);
    } catch (...) {
      return std::current_exception();
    }
  }

  void deliver() {
    for (auto next = ready_.begin(); next != ready_.end() && next->first == delivered_; next = ready_.begin()) {
      Result result = std::move(next->second);
      ready_.erase(next);
      ++delivered_;
      if (failure_) continue;
      try {
        if (std::holds_alternative<std::exception_ptr>(result)) {
          std::rethrow_exception(std::get<std::exception_ptr>(result));
        }
        consume(std::move(std::get<Output>(result)));
      } catch (...) {
        failure_ = std::current_exception();
        finished_ = true;
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable progress_;
  std::map<int64_t, Result> ready_;
  int64_t taken_ = 0;
  int64_t delivered_ = 0;
  int64_t in_flight_limit_ = 1;
  bool finished_ = false;  // no further input is taken
  std::exception_ptr failure_;
};

}  // namespace fettle::data
