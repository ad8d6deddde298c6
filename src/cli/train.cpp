// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <csignal>
#include <exception>

#include "base/environment.h"
#include "base/error.h"
#include "base/log.h"
#include "base/stop_signal.h"
#include "cli/after_training.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "device/device.h"
#include "dist/launch.h"
#include "dist/local_processes.h"
#include "train/fine_tune.h"
#include "train/memory_remedies.h"

namespace fettle::cli {

int train(const Arguments& arguments) {
  // A log whose reader has ended must not end the training.
  if (!asks_for_help(arguments)) std::signal(SIGPIPE, SIG_IGN);
  const dist::Launch launch = dist::read_launch(process_environment);
  if (launch.world_size > 1) {
    log::set_name(fmt::format("rank {}", launch.rank));
    ignore_repeated_stop_signals();
  }
  const auto config = read_options(arguments, config::Command::kTrain, launch.rank > 0);
  if (!config) return 0;
  if (launch.world_size > 1 && launch.rank == 0) log::info("{} processes ({})", launch.world_size, launch.launcher);
  check_after_training(*config);
  if (dist::starts_local_processes(launch, config->distributed.nproc_per_node)) {
    Arguments same = {"train"};
    same.insert(same.end(), arguments.begin(), arguments.end());
    return dist::start_local_processes(launch, config->distributed, same);
  }
  try {
    train::fine_tune(*config, launch);
    return launch.rank == 0 ? after_training(*config) : 0;
  } catch (const std::exception& error) {
    if (!device::is_out_of_memory(error)) throw;
    throw Error(ExitCode::kOutOfMemory, "out of memory", train::memory_remedies(*config));
  }
}

}  // namespace fettle::cli
