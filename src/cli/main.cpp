// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <cstdlib>

#include "cli/commands.h"

int main(int argc, char** argv) {
  const int code = fettle::cli::run({argv + 1, argv + argc});
  std::fflush(nullptr);
  std::_Exit(code);  // no destructors: a thread may hang in an exchange with a process that is gone
}
