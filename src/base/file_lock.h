// SPDX-License-Identifier: Apache-2.0
/// Locks between processes.
#pragma once

#include <chrono>
#include <filesystem>

namespace fettle {

/// A lock that the processes of a machine take in turns: flock(2) on a file, which is made and stays. It ends with the
/// process that holds it, however that ends. Where the file system has no locks, every process gets it, with a warning.
class FileLock {
 public:
  /// Throws Error{kIo}, {kPermission} or {kNoInput} if the file cannot be made.
  explicit FileLock(const std::filesystem::path& file);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  /// false: another process holds it.
  [[nodiscard]] bool try_lock();
  /// Waits until no other process holds it, but gives up on a holder that has not called `touch` for `longest`: false.
  [[nodiscard]] bool lock_unless_silent(std::chrono::milliseconds longest);
  /// Shows whoever waits that the holder is alive.
  void touch();

 private:
  std::filesystem::path file_;
  int descriptor_;
};

}  // namespace fettle
