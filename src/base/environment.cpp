// SPDX-License-Identifier: Apache-2.0
#include "base/environment.h"

#include <cstdlib>

namespace fettle {

std::optional<std::string> process_environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  return value;
}

std::filesystem::path cache_folder() {
  const std::string cache = process_environment("XDG_CACHE_HOME").value_or("");
  if (!cache.empty()) return std::filesystem::path(cache) / "fettle";
  const std::string home = process_environment("HOME").value_or("");
  if (!home.empty()) return std::filesystem::path(home) / ".cache" / "fettle";
  return {};
}

}  // namespace fettle
