// SPDX-License-Identifier: Apache-2.0
/// How fast a model answers: the time to the first token, and from each token to the next.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "config/config.h"
#include "model/decoder.h"

namespace fettle::train {

/// Seconds.
struct Samples {
  std::vector<double> prefill;  ///< of each run: until the first token of all its sequences is known
  std::vector<double> decode;   ///< of each later token of each run: since the one before
};

/// `runs` times benchmark_batch_size random prompts of benchmark_input_tokens tokens, each continued greedily by
/// benchmark_output_tokens tokens whatever they are.
Samples measure(const model::Decoder& model, const config::BenchmarkConfig& options, int64_t runs);

/// {"mean", "p50", "p90", "p99"} in milliseconds, interpolated as numpy.percentile does by default.
nlohmann::ordered_json percentiles(std::vector<double> seconds);

struct BenchmarkOutcome {
  int exit_code = 0;  ///< of an instance that failed, which has said why; then there are no figures
  nlohmann::ordered_json figures;
};

/// Measures the model (and adapter) of `config` in benchmark_num_instances processes, each on
/// benchmark_cores_per_instance cores of its own, logs a table and writes benchmark_output, if set. Throws Error as
/// load_inputs, {kConfig} where there are not enough cores, and as write_file.
BenchmarkOutcome benchmark(const config::Config& config);

/// What each of those processes does, which is_instance() tells: its figures and samples, for the one that started it.
nlohmann::ordered_json benchmark_instance(const config::Config& config);

}  // namespace fettle::train
