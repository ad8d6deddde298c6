// SPDX-License-Identifier: Apache-2.0
#include "cli/commands.h"
#include "cli/options.h"
#include "train/fine_tune.h"

namespace fettle::cli {

int train(const Arguments& arguments) {
  const auto config = read_options(arguments, config::Command::kTrain);
  if (config) train::fine_tune(*config);
  return 0;
}

}  // namespace fettle::cli
