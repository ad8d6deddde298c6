// SPDX-License-Identifier: Apache-2.0
/// Big files written in pieces, seen by others only when complete.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace fettle::data {

/// Writes to a temporary name of this process beside `path`; `commit` fsyncs and renames it over `path`. Destroyed
/// without a commit, it leaves nothing behind. Throws Error{kIo} (disk full, read-only) or {kPermission}.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void commit();

 private:
  void flush();

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  std::string buffer_;  // small writes are gathered
};

}  // namespace fettle::data
