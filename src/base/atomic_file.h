// SPDX-License-Identifier: Apache-2.0
/// Files written in pieces, seen by others only when complete.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace fettle {

/// Writes to `path` + `suffix`; `commit` fsyncs that and renames it over `path`, so that readers see the old file or
/// the whole new one, also after a power cut. Destroyed without a commit, it leaves nothing behind. Where several
/// processes may write the same path at once, each needs a suffix of its own. Throws Error{kIo} (disk full, read-only),
/// {kPermission}, or {kNoInput} for an absent folder.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path, std::string_view suffix = ".tmp");
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  void write_through(std::string_view bytes);
  void flush();

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_;
  std::string buffer_;  // small writes are gathered
};

}  // namespace fettle
