// SPDX-License-Identifier: Apache-2.0
/// Files written in pieces, seen by others only when complete.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace fettle {

/// Writes to a temporary file beside `path`; `commit` fsyncs that and renames it over `path`, so that readers see the
/// old file or the whole new one, also after a power cut. Destroyed without a commit, it leaves nothing behind. Several
/// processes may write the same path at once: the last commit wins. A symbolic link stays, and what it names is
/// replaced. A device, a pipe and an open file's name (/dev/stdout, /proc/self/fd/3) are written straight through.
/// Throws Error{kIo} (disk full, read-only, a folder or a disk at `path`), {kPermission}, or {kNoInput} for an absent
/// folder.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  void open_temporary();
  void write_through(std::string_view bytes);
  void flush();

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty: written straight through
  int descriptor_ = -1;
  std::string buffer_;  // small writes are gathered
};

/// Removes the temporary files that killed processes left in a folder of ours; those of living ones stay.
void remove_stale_temporaries(const std::filesystem::path& folder);

}  // namespace fettle
