// SPDX-License-Identifier: Apache-2.0
/// Files: reading whole, mapping, writing so that a reader never sees half a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace fettle {

/// A read-only memory map of a whole file. Pages are loaded when touched and shared between processes.
/// Throws Error{kNoInput} if the file does not exist or is a folder, a device or a pipe, {kPermission} if it may not be
/// read, {kIo} otherwise.
class MappedFile {
 public:
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  MappedFile(std::filesystem::path path, const std::byte* data, size_t size);

  std::filesystem::path path_;
  const std::byte* data_;
  size_t size_;
};

/// Bytes of a mapped file that are not needed any more leave this process's memory, but for those that share a page
/// with others. Who touches them again reads them anew.
void release_pages(std::span<const std::byte> mapped);

/// The whole file as a string. Throws as MappedFile::open.
std::string read_file(const std::filesystem::path& path);

/// Writes `content` as AtomicFile does: readers see the old file or the new one. Throws Error{kIo} (disk full,
/// read-only) or {kPermission} and leaves the old file untouched.
void write_file(const std::filesystem::path& path, std::string_view content);

/// Writes all of `bytes` to an open file; `path` is its name. Throws Error{kIo}.
void write_all(int descriptor, std::string_view bytes, const std::filesystem::path& path);

/// Makes `path` and its parents. Throws Error{kNoInput}, {kIo} or {kPermission} naming the folder, and what is in its
/// way.
void make_directories(const std::filesystem::path& path);

/// fsyncs a file, if there is one of that name.
void sync_file(const std::filesystem::path& path);

/// fsyncs a folder, so that renames inside it survive a power cut.
void sync_directory(const std::filesystem::path& path);

/// The Error for a failed system call, with what to do about it: kNoInput for a path that is absent or no path,
/// kPermission (EACCES, EPERM), kOutOfMemory (ENOMEM), else kIo. The text is `what` and the system's reason.
Error system_error(std::string_view what, int error_number);

/// Throws system_error("cannot <action> <path>").
[[noreturn]] void throw_system_error(std::string_view action, const std::filesystem::path& path, int error_number);

}  // namespace fettle
