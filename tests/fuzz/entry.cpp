// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    fettle::fuzz::run_target({reinterpret_cast<const char*>(data), size});
  } catch (const fettle::Error& error) {
    // A bad input is the user's mistake, told in one line; any other exception ends the process as uncaught.
    if (error.code() == fettle::ExitCode::kInternal || std::strpbrk(error.what(), "\n\r") != nullptr ||
        *error.what() == '\0') {
      std::fprintf(stderr, "not a message for a user: exit code %d: %s\n", static_cast<int>(error.code()),
                   error.what());
      std::abort();
    }
  }
  return 0;
}
