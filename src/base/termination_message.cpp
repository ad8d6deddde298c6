// SPDX-License-Identifier: Apache-2.0
#include "base/termination_message.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

namespace fettle {

void write_termination_message(std::string_view line) noexcept {
  constexpr size_t kMost = 4096;  // the kubelet keeps no more
  const char* path = std::getenv("FETTLE_TERMINATION_MESSAGE_PATH");
  if (path == nullptr || *path == '\0') return;
  const int file = ::open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
  if (file < 0) return;
  struct stat status {};
  if (::fstat(file, &status) == 0 && status.st_size == 0) {
    line = line.substr(0, kMost);
    if (::write(file, line.data(), line.size()) < 0) ::ftruncate(file, 0);
  }
  ::close(file);
}

}  // namespace fettle
