// SPDX-License-Identifier: Apache-2.0
#include "base/stop_signal.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <ctime>

#include "base/error.h"

namespace fettle {
namespace {

std::atomic<int> noted{0};
std::atomic<bool> deferred{false};
std::atomic<int> bound_seconds{0};
std::atomic<int64_t> repeat_milliseconds{0};  // in which a second signal is the first one again
std::atomic<int64_t> first_at{0};
static_assert(std::atomic<int>::is_always_lock_free, "a handler may touch it");

void write_text(const char* text) {
  // The stream may be closed or full; there is nobody left to tell.
  if (::write(STDERR_FILENO, text, std::strlen(text)) < 0) return;
}

/// fmt and printf may not be called in a handler.
void write_number(int value) {
  char digits[12];
  char* end = digits + sizeof(digits);
  char* begin = end;
  *--begin = '\0';
  do *--begin = static_cast<char>('0' + value % 10);
  while ((value /= 10) > 0);
  write_text(begin);
}

void write_promise(int signal) {
  write_text(signal_name(signal));
  write_text(": saving the state after this micro-batch");
  if (bound_seconds > 0) {
    write_text(", within ");
    write_number(bound_seconds);
    write_text(" s");
  }
  write_text("; a second signal ends the program at once\n");
}

int64_t milliseconds_now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

/// Only functions that a handler may call (signal-safety(7)).
void handle(int signal) {
  if (noted != 0) {
    if (milliseconds_now() - first_at < repeat_milliseconds) return;
    std::signal(signal, SIG_DFL);
    ::raise(signal);  // delivered when this handler returns
    return;
  }
  first_at = milliseconds_now();
  noted = signal;
  if (deferred) return write_promise(signal);
  write_text("stopped by ");
  write_text(signal_name(signal));
  write_text("; run the same command again\n");
  ::_exit(static_cast<int>(ExitCode::kPreempted));
}

}  // namespace

void handle_stop_signals() {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    if (action.sa_handler == SIG_IGN) continue;  // nohup and shells' background jobs mean it
    action = {};
    action.sa_handler = handle;
    action.sa_flags = SA_RESTART;
    ::sigaction(signal, &action, nullptr);
  }
}

StopDeferral::StopDeferral() {
  deferred = true;
}

StopDeferral::~StopDeferral() {
  deferred = false;
  bound_seconds = 0;
}

void StopDeferral::set_bound(double seconds) {
  bound_seconds = static_cast<int>(std::clamp(std::ceil(seconds), 1.0, 1e9));
}

void ignore_repeated_stop_signals() {
  repeat_milliseconds = 2000;
}

int stop_signal() noexcept {
  return noted;
}

const char* signal_name(int signal) noexcept {
  return signal == SIGINT ? "SIGINT" : signal == SIGHUP ? "SIGHUP" : "SIGTERM";
}

}  // namespace fettle
