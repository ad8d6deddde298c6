// SPDX-License-Identifier: Apache-2.0
#include "base/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace fettle {
namespace fs = std::filesystem;
namespace {

constexpr size_t kBufferBytes = size_t{4} << 20;
constexpr size_t kAlignment = 4096;  // of memory, place and size, for O_DIRECT
constexpr const char* kPrefix = ".fettle-";
constexpr const char* kSuffix = ".tmp";
constexpr int kAttempts = 8;
constexpr int kMostLinks = 40;  // the kernel's limit

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

/// What the links of `path` lead to, existing or not. A link in /proc names an open file and stays.
fs::path follow_links(fs::path path) {
  struct stat status {};
  struct statfs volume {};
  for (int links = 0; ::lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode); ++links) {
    if (links == kMostLinks) throw_system_error("write", path, ELOOP);
    if (::statfs(folder_of(path).c_str(), &volume) == 0 && volume.f_type == PROC_SUPER_MAGIC) break;
    std::error_code failure;
    const fs::path target = fs::read_symlink(path, failure);
    if (failure) throw_system_error("write", path, failure.value());
    path = folder_of(path) / target;
  }
  return path;
}

/// Whether a new file takes the place of what is at `path`: of a file, or of nothing. A stream stays: a device, a pipe,
/// an open file of /proc.
bool is_replaced(const fs::path& path) {
  struct stat status {};
  struct stat entry {};
  if (::stat(path.c_str(), &status) != 0 || ::lstat(path.c_str(), &entry) != 0) {
    if (errno != ENOENT) throw_system_error("write", path, errno);
    return true;
  }
  if (S_ISDIR(status.st_mode)) throw_system_error("write", path, EISDIR);
  if (S_ISBLK(status.st_mode)) {
    throw Error(ExitCode::kIo, fmt::format("{} is a disk, not a file", path.string()), "give the name of a file");
  }
  return S_ISREG(status.st_mode) && !S_ISLNK(entry.st_mode);
}

/// Whether a process that lives holds the temporary file's lock; true where that cannot be told.
bool is_in_use(int descriptor) {
  return ::flock(descriptor, LOCK_EX | LOCK_NB) != 0;
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& path, PageCache page_cache)
    : path_(follow_links(path)),
      page_cache_(page_cache),
      buffer_(static_cast<std::byte*>(std::aligned_alloc(kAlignment, kBufferBytes)), std::free) {
  if (!buffer_) throw std::bad_alloc();
  if (is_replaced(path_)) {
    open_temporary();
  } else {
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    if (descriptor_ < 0) throw_system_error("write", path_, errno);
  }
}

/// The name does not grow from the target's, which may be as long as a name can be. The lock tells the temporary of a
/// living process from one that was left behind; whoever took ours for one has unlinked it, and another is made.
void AtomicFile::open_temporary() {
  std::random_device random;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    temporary_ = folder_of(path_) / fmt::format("{}{:08x}{:08x}{}", kPrefix, random(), random(), kSuffix);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (descriptor_ < 0 && errno == EEXIST) continue;
    if (descriptor_ < 0) throw_system_error("write", path_, errno);
    ::flock(descriptor_, LOCK_EX | LOCK_NB);
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0 || status.st_nlink > 0) return;
    ::close(std::exchange(descriptor_, -1));
  }
  throw_system_error("write", path_, EEXIST);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const size_t count = std::min(bytes.size(), kBufferBytes - buffered_);
    std::memcpy(buffer_.get() + buffered_, bytes.data(), count);
    buffered_ += count;
    bytes = bytes.subspan(count);
    if (buffered_ == kBufferBytes) flush();
  }
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text)));
}

/// A full buffer may go past the page cache; the rest of a file has no size for that.
void AtomicFile::flush() {
  set_direct(page_cache_ == PageCache::kBypass && !temporary_.empty() && buffered_ == kBufferBytes);
  std::span<const std::byte> bytes(buffer_.get(), buffered_);
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EINVAL && is_direct_) {  // also after a part that ended off the alignment
      page_cache_ = PageCache::kKeep;
      set_direct(false);
      continue;
    }
    if (written < 0) throw_system_error("write", path_, errno);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  buffered_ = 0;
}

void AtomicFile::set_direct(bool is_direct) {
  if (is_direct == is_direct_) return;
  const int flags = ::fcntl(descriptor_, F_GETFL);
  if (flags < 0 || ::fcntl(descriptor_, F_SETFL, is_direct ? flags | O_DIRECT : flags & ~O_DIRECT) != 0) {
    page_cache_ = PageCache::kKeep;  // this file system cannot
    return;
  }
  is_direct_ = is_direct;
}

void AtomicFile::commit() {
  flush();
  if (!temporary_.empty()) {
    if (::fsync(descriptor_) != 0) throw_system_error("write", path_, errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw_system_error("write", path_, errno);
  }
  if (::close(std::exchange(descriptor_, -1)) != 0) throw_system_error("write", path_, errno);
  if (!temporary_.empty()) sync_directory(folder_of(path_));
}

void remove_stale_temporaries(const fs::path& folder) {
  std::error_code failure;
  fs::directory_iterator entry(folder, failure);
  for (; !failure && entry != fs::directory_iterator(); entry.increment(failure)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    const int descriptor = ::open(entry->path().c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) continue;
    if (!is_in_use(descriptor)) ::unlink(entry->path().c_str());
    ::close(descriptor);
  }
}

}  // namespace fettle
