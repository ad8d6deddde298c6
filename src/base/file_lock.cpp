// SPDX-License-Identifier: Apache-2.0
#include "base/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

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

bool FileLock::take(int operation) {
  while (::flock(descriptor_, operation) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK) return false;
    log::warning("cannot lock {}: {}", file_.string(), std::generic_category().message(errno));
    break;
  }
  return true;
}

bool FileLock::try_lock() {
  return take(LOCK_EX | LOCK_NB);
}

void FileLock::lock() {
  take(LOCK_EX);
}

}  // namespace fettle
