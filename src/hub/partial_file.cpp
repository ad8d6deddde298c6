// SPDX-License-Identifier: Apache-2.0
#include "hub/partial_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kSmallestPiece = int64_t{1} << 20;
constexpr int64_t kLargestPiece = int64_t{64} << 20;
constexpr int64_t kWantedPieces = 16;
constexpr size_t kHeaderBytes = 64;

fs::path with_suffix(const fs::path& path, const char* suffix) {
  fs::path result = path;
  result += suffix;
  return result;
}

int open_or_throw(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor < 0) throw_system_error("write", path, errno);
  return descriptor;
}

void write_fully(int descriptor, const fs::path& path, std::string_view bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw_system_error("write", path, written == 0 ? ENOSPC : errno);
    bytes.remove_prefix(static_cast<size_t>(written));
    offset += written;
  }
}

std::string_view as_text(const int64_t& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

}  // namespace

PartialFile::PartialFile(fs::path target, int64_t size)
    : target_(std::move(target)),
      data_path_(with_suffix(target_, ".fettle.incomplete")),
      ranges_path_(with_suffix(target_, ".fettle.ranges")),
      size_(size),
      piece_bytes_(std::clamp(size / kWantedPieces, kSmallestPiece, kLargestPiece)) {
  try {
    open();
  } catch (...) {
    close();
    throw;
  }
}

PartialFile::~PartialFile() {
  close();
}

void PartialFile::close() {
  if (data_ >= 0) ::close(data_);
  if (ranges_ >= 0) ::close(ranges_);
  data_ = ranges_ = -1;
}

std::string PartialFile::header() const {
  std::string text = fmt::format("fettle 1 size {} piece {}\n", size_, piece_bytes_);
  text.resize(kHeaderBytes, '\0');
  return text;
}

void PartialFile::open() {
  done_.assign(static_cast<size_t>(std::max<int64_t>(1, (size_ + piece_bytes_ - 1) / piece_bytes_)), 0);
  data_ = open_or_throw(data_path_);
  ranges_ = open_or_throw(ranges_path_);
  std::string known(kHeaderBytes, '\0');
  struct stat status {};
  const bool is_ours = ::pread(ranges_, known.data(), kHeaderBytes, 0) == static_cast<ssize_t>(kHeaderBytes) &&
                       known == header() && ::fstat(data_, &status) == 0 && status.st_size == size_;
  if (is_ours) {
    const size_t bytes = done_.size() * sizeof(int64_t);
    if (::pread(ranges_, done_.data(), bytes, kHeaderBytes) == static_cast<ssize_t>(bytes)) {
      for (size_t i = 0; i < done_.size(); ++i) {
        if (done_[i] < 0 || done_[i] > piece(i).end - piece(i).first) done_[i] = 0;
      }
      return;
    }
    std::fill(done_.begin(), done_.end(), 0);
  }
  // The notes go first: they must never speak of another file's bytes.
  if (::ftruncate(ranges_, 0) != 0) throw_system_error("write", ranges_path_, errno);
  if (::ftruncate(data_, 0) != 0 || ::ftruncate(data_, size_) != 0) throw_system_error("write", data_path_, errno);
  // Not every file system can reserve; one that can says here that it is full.
  if (size_ > 0 && ::fallocate(data_, 0, 0, size_) != 0 && errno == ENOSPC) {
    throw_system_error("write", data_path_, ENOSPC);
  }
  std::string notes = header();
  notes.resize(kHeaderBytes + done_.size() * sizeof(int64_t), '\0');
  write_fully(ranges_, ranges_path_, notes, 0);
}

PartialFile::Span PartialFile::piece(size_t index) const {
  const int64_t first = static_cast<int64_t>(index) * piece_bytes_;
  return {first, std::min(size_, first + piece_bytes_)};
}

int64_t PartialFile::done_bytes() const {
  return std::accumulate(done_.begin(), done_.end(), int64_t{0});
}

void PartialFile::write(size_t index, std::string_view bytes) {
  write_at(piece(index).first + done_[index], bytes);
  done_[index] += static_cast<int64_t>(bytes.size());
  write_fully(ranges_, ranges_path_, as_text(done_[index]),
              static_cast<int64_t>(kHeaderBytes + index * sizeof(int64_t)));
}

void PartialFile::write_at(int64_t offset, std::string_view bytes) {
  write_fully(data_, data_path_, bytes, offset);
}

bool PartialFile::has_digest(std::string_view digest) const {
  if (digest.size() != 64 && digest.size() != 40) return true;
  if (static_cast<int64_t>(fs::file_size(data_path_)) != size_) return false;
  if (digest.size() == 64) {
    Sha256 hash;
    update_from_file(hash, data_path_);
    return hash.finish() == digest;
  }
  Sha1 hash;
  hash.update(fmt::format("blob {}", size_));
  hash.update(std::string_view("\0", 1));
  update_from_file(hash, data_path_);
  return hash.finish() == digest;
}

void PartialFile::discard() {
  close();
  ::unlink(ranges_path_.c_str());
  ::unlink(data_path_.c_str());
}

void PartialFile::start_over() {
  discard();
  open();
}

void PartialFile::commit() {
  if (::fsync(data_) != 0) throw_system_error("write", data_path_, errno);
  if (::rename(data_path_.c_str(), target_.c_str()) != 0) {
    struct stat status {};
    // Where locks do not work, another process may have been first.
    if (errno != ENOENT || ::stat(target_.c_str(), &status) != 0) throw_system_error("write", target_, errno);
  }
  ::unlink(ranges_path_.c_str());
  close();
  sync_directory(target_.parent_path());
}

int64_t PartialFile::missing_bytes(const fs::path& target, int64_t size) {
  struct stat status {};
  if (::stat(with_suffix(target, ".fettle.incomplete").c_str(), &status) != 0) return size;
  return std::max<int64_t>(0, size - status.st_blocks * 512);
}

}  // namespace fettle::hub
