// SPDX-License-Identifier: Apache-2.0
#include "base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <system_error>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"

namespace fettle {
namespace fs = std::filesystem;
namespace {

/// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags, mode_t mode = 0644)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

struct Advice {
  int error_number;
  ExitCode code;
  const char* hint;
};

constexpr Advice kAdvice[] = {
    {ENOENT, ExitCode::kNoInput, "check the path"},
    {ENOTDIR, ExitCode::kNoInput, "check the path: a part of it is not a folder"},
    {ENAMETOOLONG, ExitCode::kNoInput, "check the path: names have at most 255 bytes"},
    {ELOOP, ExitCode::kNoInput, "check the symbolic links: they lead in a circle"},
    {EACCES, ExitCode::kPermission, "check the owner and the mode of the file and its folder"},
    {EPERM, ExitCode::kPermission, "check the owner and the mode of the file and its folder"},
    {EISDIR, ExitCode::kIo, "give the name of a file"},
    {EEXIST, ExitCode::kIo, "remove it or choose another name"},
    {ENOSPC, ExitCode::kIo, "free some space or choose another folder"},
    {EDQUOT, ExitCode::kIo, "free some space or choose another folder"},
    {EFBIG, ExitCode::kIo, "raise the limit on the size of files (ulimit -f)"},
    {EROFS, ExitCode::kIo, "choose a folder on a writable volume"},
    {EMFILE, ExitCode::kIo, "raise the limit on open files (ulimit -n)"},
    {ENFILE, ExitCode::kIo, "raise the limit on open files"},
    {EAGAIN, ExitCode::kIo, "raise the limit on processes and threads (ulimit -u)"},
    {ENOMEM, ExitCode::kOutOfMemory, "give the process more memory"},
};

/// What stands where `path` needs a folder; empty if nothing does.
std::string obstacle(const fs::path& path) {
  fs::path part;
  for (const fs::path& name : path) {
    part /= name;
    std::error_code failure;
    const fs::file_status status = fs::status(part, failure);
    if (fs::exists(status) && !fs::is_directory(status)) return part.string() + " is not a folder";
    if (!fs::exists(status) && fs::is_symlink(part, failure)) return part.string() + " is a link to nothing";
  }
  return {};
}

}  // namespace

Error system_error(std::string_view what, int error_number) {
  const auto* found = std::ranges::find(kAdvice, error_number, &Advice::error_number);
  const Advice advice = found == std::end(kAdvice) ? Advice{error_number, ExitCode::kIo, "check the volume"} : *found;
  return {advice.code, fmt::format("{}: {}", what, std::generic_category().message(error_number)), advice.hint};
}

void throw_system_error(std::string_view action, const fs::path& path, int error_number) {
  throw system_error(fmt::format("cannot {} {}", action, path.string()), error_number);
}

MappedFile::MappedFile(fs::path path, const std::byte* data, size_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

std::shared_ptr<const MappedFile> MappedFile::open(const fs::path& path) {
  const Descriptor file(path, O_RDONLY | O_NONBLOCK);  // a pipe that nobody writes to would be waited for
  if (file.get() < 0) throw_system_error("open", path, errno);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw_system_error("read", path, errno);
  if (!S_ISREG(status.st_mode)) {
    throw Error(ExitCode::kNoInput, fmt::format("{} is not a regular file", path.string()),
                "folders, devices and pipes cannot be read here: give the name of a file");
  }
  const auto size = static_cast<size_t>(status.st_size);
  const std::byte* data = nullptr;
  if (size > 0) {
    void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (mapped == MAP_FAILED) throw_system_error("map", path, errno);
    data = static_cast<const std::byte*>(mapped);
  }
  return std::shared_ptr<const MappedFile>(new MappedFile(path, data, size));
}

MappedFile::~MappedFile() {
  if (size_ > 0) ::munmap(const_cast<std::byte*>(data_), size_);
}

void release_pages(std::span<const std::byte> mapped) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(mapped.data()) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(mapped.data()) + mapped.size()) / page * page;
  // It may fail, for instance on locked memory: then the pages stay, which harms nobody.
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::string read_file(const fs::path& path) {
  const auto mapped = MappedFile::open(path);
  const auto bytes = mapped->bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write_file(const fs::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void write_all(int descriptor, std::string_view bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_system_error("write", path, errno);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

void make_directories(const fs::path& path) {
  std::error_code failure;
  fs::create_directories(path, failure);
  if (!failure) return;
  const std::string reason = obstacle(path);
  if (reason.empty()) throw_system_error("create folder", path, failure.value());
  throw Error(ExitCode::kNoInput, fmt::format("cannot create folder {}: {}", path.string(), reason),
              "choose another folder, or move away what is there");
}

void sync_file(const fs::path& path) {
  const Descriptor file(path, O_WRONLY);
  if (file.get() < 0 && errno == ENOENT) return;
  if (file.get() < 0) throw_system_error("open", path, errno);
  if (::fsync(file.get()) != 0) throw_system_error("write", path, errno);
}

void sync_directory(const fs::path& path) {
  const Descriptor folder(path, O_RDONLY | O_DIRECTORY);
  if (folder.get() < 0) throw_system_error("open folder", path, errno);
  if (::fsync(folder.get()) != 0) throw_system_error("sync folder", path, errno);
}

}  // namespace fettle
