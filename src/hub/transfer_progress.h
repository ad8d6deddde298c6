// SPDX-License-Identifier: Apache-2.0
/// How far a download is, on standard error.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <string>
#include <thread>

namespace fettle::hub {

/// "1.50 GB", "12.3 MB", "4 kB", "17 bytes".
std::string bytes_text(int64_t bytes);

/// While it lives, a thread shows bytes, rate and the time that is left: on a terminal in one line that is drawn anew,
/// elsewhere by a log line every five seconds. At its end it logs what came in how long, if it was more than a moment.
class TransferProgress {
 public:
  /// `done` of `total` bytes were there before.
  TransferProgress(std::string what, int64_t done, int64_t total);
  ~TransferProgress();
  TransferProgress(const TransferProgress&) = delete;
  TransferProgress& operator=(const TransferProgress&) = delete;

  /// Bytes have arrived, or (negative) turned out to be wrong. From any thread.
  void add(int64_t bytes) { done_ += bytes; }

 private:
  [[nodiscard]] std::string line() const;
  void show(const std::stop_token& stop);

  std::string what_;
  int64_t before_;
  int64_t total_;
  bool on_terminal_;
  std::atomic<int64_t> done_;
  std::chrono::steady_clock::time_point began_;
  std::condition_variable_any ended_;
  std::jthread thread_;  // the last member: it uses the others
};

}  // namespace fettle::hub
