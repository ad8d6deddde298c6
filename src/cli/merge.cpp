// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "train/inputs.h"
#include "train/merge.h"

namespace fettle::cli {

int merge(const Arguments& arguments) {
  const auto config = read_options(arguments, config::Command::kMerge);
  if (!config) return 0;
  const device::Device device = train::start_device(config->device);
  log::info("{}", device.description());
  fmt::print("{}\n", train::merge(*config, device.torch_device).dump());
  return 0;
}

}  // namespace fettle::cli
