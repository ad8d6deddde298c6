// SPDX-License-Identifier: Apache-2.0
/// Files written in pieces, seen by others only when complete.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace fettle {

/// What becomes of a file's bytes in memory once they are on the disk.
enum class PageCache {
  kKeep,
  /// Large files are written past the page cache where the file system can (O_DIRECT): they take no memory from what
  /// is mapped, and a tenth of the processor's time.
  kBypass
};

/// Writes to a temporary file beside `path`; `commit` fsyncs that and renames it over `path`, so that readers see the
/// old file or the whole new one, also after a power cut. Destroyed without a commit, it leaves nothing behind. Several
/// processes may write the same path at once: the last commit wins. A symbolic link stays, and what it names is
/// replaced. A device, a pipe and an open file's name (/dev/stdout, /proc/self/fd/3) are written straight through.
/// Throws Error{kIo} (disk full, read-only, a folder or a disk at `path`), {kPermission}, or {kNoInput} for an absent
/// folder.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path, PageCache page_cache = PageCache::kKeep);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  void open_temporary();
  void flush();
  void set_direct(bool is_direct);

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty: written straight through
  PageCache page_cache_;
  int descriptor_ = -1;
  bool is_direct_ = false;
  std::unique_ptr<std::byte, void (*)(void*)> buffer_;
  size_t buffered_ = 0;
};

/// Removes the temporary files that killed processes left in a folder of ours; those of living ones stay.
void remove_stale_temporaries(const std::filesystem::path& folder);

}  // namespace fettle
