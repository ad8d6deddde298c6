// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "config/config.h"

namespace fettle::cli {

/// Refuses, before the training, what its do_quantize cannot do. Throws Error{kConfig}, and as hub::resolve_model.
void check_after_training(const config::Config& config);

/// do_quantize and do_benchmark of a training that is complete: merges an adapter into its base (output_dir/merged),
/// quantizes the result (quantize_output_dir) and measures both. What an earlier start made of the same weights and
/// options is not made again. Returns the exit code. Throws Error as train::merge, quantize_model and train::benchmark.
int after_training(const config::Config& config);

}  // namespace fettle::cli
