// SPDX-License-Identifier: Apache-2.0
#include "base/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <thread>

#include "base/file.h"
#include "base/log.h"

namespace fettle {

FileLock::FileLock(const std::filesystem::path& file)
    : file_(file), descriptor_(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0) throw_system_error("write", file, errno);
}

FileLock::~FileLock() {
  ::close(descriptor_);
}

bool FileLock::try_lock() {
  while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK) return false;
    log::warning("cannot lock {}: {}", file_.string(), std::generic_category().message(errno));
    break;
  }
  return true;
}

bool FileLock::lock_unless_silent(std::chrono::milliseconds longest) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kPause(100);
  // Counted by this process's clock from a change on: that of the volume may differ.
  struct stat seen {};
  for (Clock::time_point changed = Clock::now(); !try_lock(); std::this_thread::sleep_for(kPause)) {
    struct stat now {};
    ::fstat(descriptor_, &now);
    if (now.st_mtim.tv_sec != seen.st_mtim.tv_sec || now.st_mtim.tv_nsec != seen.st_mtim.tv_nsec) {
      seen = now;
      changed = Clock::now();
    } else if (Clock::now() - changed > longest) {
      return false;
    }
  }
  return true;
}

void FileLock::touch() {
  ::futimens(descriptor_, nullptr);  // where it fails, those that wait go on by themselves
}

}  // namespace fettle
