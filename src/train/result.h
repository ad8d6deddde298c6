// SPDX-License-Identifier: Apache-2.0
/// What a finished run tells beside its weights.
#pragma once

#include <optional>

#include "config/config.h"
#include "train/metrics.h"
#include "train/state.h"

namespace fettle::train {

/// Writes all_results.json and the model card into output_dir. `before` and `after`: the evaluations around training.
/// Throws Error{kIo} or {kPermission}.
void write_results(const config::Config& config, const TrainingState& state, const std::optional<Evaluation>& before,
                   const std::optional<Evaluation>& after);

/// Logs where the result is and how to try it.
void announce_result(const config::Config& config);

}  // namespace fettle::train
