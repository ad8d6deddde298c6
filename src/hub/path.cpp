// SPDX-License-Identifier: Apache-2.0
#include "hub/path.h"

#include <algorithm>
#include <system_error>

#include "base/file.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

fs::file_status status_of(const fs::path& path) {
  std::error_code failure;
  const fs::file_status status = fs::status(path, failure);
  if (status.type() == fs::file_type::none) throw_system_error("look at", path, failure.value());
  return status;
}

}  // namespace

bool path_exists(const fs::path& path) {
  return fs::exists(status_of(path));
}

bool is_folder(const fs::path& path) {
  return fs::is_directory(status_of(path));
}

bool is_file(const fs::path& path) {
  return fs::is_regular_file(status_of(path));
}

std::vector<fs::path> list_folder(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code failure;
  fs::directory_iterator next(folder, failure);
  for (; !failure && next != fs::directory_iterator(); next.increment(failure)) entries.push_back(next->path());
  if (failure) throw_system_error("list folder", folder, failure.value());
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace fettle::hub
