// SPDX-License-Identifier: Apache-2.0
#include "train/check.h"

#include "cli/commands.h"
#include "cli/options.h"
#include "dist/launch.h"

namespace fettle::cli {

int check(const Arguments& arguments) {
  const dist::Launch launch = dist::read_launch(dist::process_environment);
  const auto config = read_options(arguments, config::Command::kCheck);
  if (config) train::check(*config, launch);
  return 0;
}

}  // namespace fettle::cli
