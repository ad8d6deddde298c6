// SPDX-License-Identifier: Apache-2.0
#include "train/check.h"

#include "base/environment.h"
#include "cli/after_training.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "dist/launch.h"
#include "dist/local_processes.h"

namespace fettle::cli {

int check(const Arguments& arguments) {
  dist::Launch launch = dist::read_launch(process_environment);
  const auto config = read_options(arguments, config::Command::kCheck);
  if (!config) return 0;
  const int64_t processes = config->distributed.nproc_per_node;
  if (dist::starts_local_processes(launch, processes)) launch = dist::first_local_process(launch, processes);
  check_after_training(*config);
  train::check(*config, launch);
  return 0;
}

}  // namespace fettle::cli
