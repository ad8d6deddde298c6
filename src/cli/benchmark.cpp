// SPDX-License-Identifier: Apache-2.0
#include "train/benchmark.h"

#include <fmt/core.h>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/outputs.h"
#include "train/instances.h"

namespace fettle::cli {

int benchmark(const Arguments& arguments) {
  const bool is_instance = train::is_instance();
  const auto config = read_options(arguments, config::Command::kBenchmark, /*is_quiet=*/is_instance);
  if (!config) return 0;
  require_not_read(*config, "benchmark_output", config->benchmark.benchmark_output);
  const train::BenchmarkOutcome outcome =
      is_instance ? train::BenchmarkOutcome{0, train::benchmark_instance(*config)} : train::benchmark(*config);
  if (outcome.exit_code == 0) fmt::print("{}\n", outcome.figures.dump());
  return outcome.exit_code;
}

}  // namespace fettle::cli
