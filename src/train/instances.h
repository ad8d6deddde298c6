// SPDX-License-Identifier: Apache-2.0
/// Processes of this program that measure side by side, each on cores of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fettle::train {

/// The hardware threads of each of `instances`, `cores` physical cores each of those that this process may use; 0: as
/// many as there are for each. Throws Error{kConfig} where there are not enough.
std::vector<std::vector<int>> share_cores(const std::vector<std::vector<int>>& physical, int64_t instances,
                                          int64_t cores);

struct InstanceResults {
  int exit_code = 0;                 ///< of the first that failed, which has said why; else 0
  std::vector<std::string> outputs;  ///< what each wrote to standard output
};

/// Runs this program with `arguments` once for each of `cpus`, pinned to those hardware threads. None goes on from
/// wait_for_all before all have come there. They end with this process, however it ends, and where one fails. Throws
/// Error{kUnavailable} if no process can be had.
InstanceResults run_instances(const std::vector<std::string>& arguments, const std::vector<std::vector<int>>& cpus);

/// Whether this process is one that run_instances started.
bool is_instance();

/// In such a process: returns once all have come here. Elsewhere at once.
void wait_for_all();

}  // namespace fettle::train
