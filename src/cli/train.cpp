// SPDX-License-Identifier: Apache-2.0
#include <exception>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "device/device.h"
#include "train/fine_tune.h"
#include "train/memory_remedies.h"

namespace fettle::cli {

int train(const Arguments& arguments) {
  const auto config = read_options(arguments, config::Command::kTrain);
  if (!config) return 0;
  try {
    train::fine_tune(*config);
  } catch (const std::exception& error) {
    if (!device::is_out_of_memory(error)) throw;
    throw Error(ExitCode::kOutOfMemory, "out of memory", train::memory_remedies(*config));
  }
  return 0;
}

}  // namespace fettle::cli
