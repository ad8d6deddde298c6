// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/outputs.h"
#include "train/gguf_export.h"

namespace fettle::cli {

int export_file(const Arguments& arguments) {
  const auto config = read_options(arguments, config::Command::kExport);
  if (!config) return 0;
  require_not_read(*config, "output", config->preprocess.output);
  train::export_gguf(config->model, config->gguf_export, config->preprocess);
  log::info("written to {}", config->preprocess.output);
  fmt::print("output: {}\n", config->preprocess.output);
  return 0;
}

}  // namespace fettle::cli
