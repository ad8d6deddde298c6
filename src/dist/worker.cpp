// SPDX-License-Identifier: Apache-2.0
#include "dist/worker.h"

#include <c10/util/Exception.h>

#include <deque>
#include <string>
#include <thread>
#include <utility>

namespace fettle::dist {

void Progress::finish(std::exception_ptr error) {
  {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
    error_ = std::move(error);
  }
  changed_.notify_all();
}

bool Progress::wait_for(std::chrono::milliseconds limit) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit, [this] { return ended_; });
}

std::exception_ptr Progress::error() const {
  const std::scoped_lock lock(mutex_);
  return error_;
}

struct Worker::State {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::pair<std::function<void()>, std::shared_ptr<Progress>>> calls;
  bool is_busy = false;
  bool stop = false;
  std::thread thread;

  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return stop || !calls.empty(); });
      if (stop) return;
      auto [call, progress] = std::move(calls.front());
      calls.pop_front();
      is_busy = true;
      lock.unlock();
      std::exception_ptr error;
      try {
        call();
      } catch (...) {
        error = std::current_exception();
      }
      call = nullptr;  // what it owned is given up before its caller goes on
      lock.lock();
      is_busy = false;
      lock.unlock();
      progress->finish(std::move(error));
      lock.lock();
    }
  }
};

Worker::Worker() : state_(std::make_shared<State>()) {
  state_->thread = std::thread([state = state_] { state->run(); });
}

Worker::~Worker() {
  std::unique_lock lock(state_->mutex);
  state_->stop = true;
  const bool is_busy = state_->is_busy;
  std::thread thread = std::move(state_->thread);
  lock.unlock();
  state_->changed.notify_all();
  if (is_busy) {
    thread.detach();
  } else {
    thread.join();
  }
}

std::shared_ptr<Progress> Worker::start(std::function<void()> call) {
  auto progress = std::make_shared<Progress>();
  {
    const std::scoped_lock lock(state_->mutex);
    state_->calls.emplace_back(std::move(call), progress);
  }
  state_->changed.notify_all();
  return progress;
}

std::string reason(const std::exception_ptr& error) {
  std::string text;
  try {
    std::rethrow_exception(error);
  } catch (const c10::Error& caught) {
    text = caught.what_without_backtrace();
  } catch (const std::exception& caught) {
    text = caught.what();
  } catch (...) {
    text = "an unknown exception";
  }
  return text.substr(0, text.find('\n'));
}

}  // namespace fettle::dist
