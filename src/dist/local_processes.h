// SPDX-License-Identifier: Apache-2.0
/// Several processes of one run on this machine, one an accelerator, where no launcher starts them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"
#include "dist/launch.h"

namespace fettle::dist {

/// Whether this process is to start `count` processes in its place: it stands for its whole machine as far as the
/// launcher knows (none, an Indexed Job, PyTorchJob, Trainer, or RANK by hand). False where the launcher, or a process
/// that called start_local_processes, has started them already. Throws Error{kConfig} where a launcher started another
/// number.
bool starts_local_processes(const Launch& node, int64_t count);

/// Where the first of those processes will stand.
Launch first_local_process(Launch node, int64_t count);

/// Runs this program with `arguments` in nproc_per_node processes, with the environment that read_launch calls
/// "environment", passes SIGTERM, SIGINT and SIGHUP on to them, and waits for all of them. They end with this process,
/// however it ends. Returns 0 if all did, else the exit code of the first to fail, which is the cause of the others'
/// (128 + signal for one that was killed). Throws Error{kUnavailable} if no process or port can be had.
int start_local_processes(const Launch& node, const config::DistributedConfig& options,
                          const std::vector<std::string>& arguments);

}  // namespace fettle::dist
