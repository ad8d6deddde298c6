// SPDX-License-Identifier: Apache-2.0
/// What a finished run tells beside its weights.
#pragma once

#include <c10/core/Device.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "config/config.h"
#include "train/metrics.h"
#include "train/state.h"

namespace fettle::train {

inline constexpr const char* kResultsFile = "all_results.json";

/// The evaluations around training.
struct Evaluations {
  const std::optional<Evaluation>& before;
  const std::optional<Evaluation>& after;
};

/// Writes all_results.json, the model card and manifest.sha256 into output_dir. `device`: whose memory is reported.
/// Throws Error{kIo} or {kPermission}.
void write_results(const config::Config& config, const TrainingState& state, const Evaluations& evaluations,
                   at::Device device);

/// manifest.sha256 of a result, without what says how the run stands and what has a manifest of its own. Throws
/// Error{kIo} or {kPermission}.
void write_manifest(const std::filesystem::path& folder);

/// Logs where the result is and how to try it.
void announce_result(const config::Config& config);

}  // namespace fettle::train
