// SPDX-License-Identifier: Apache-2.0
#include "text/rust.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

namespace fettle::text::rust {

void check(int32_t status, const Buffer& error, ExitCode code, std::string_view where, std::string hint) {
  if (status == FETTLE_OK) {
    return;
  }
  std::string message = error.string();
  std::replace(message.begin(), message.end(), '\n', ' ');
  throw Error(code, fmt::format("{}: {}", where, message), std::move(hint));
}

}  // namespace fettle::text::rust
