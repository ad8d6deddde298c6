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

/// The evaluations around training.
struct Evaluations {
  const std::optional<Evaluation>& before;
  const std::optional<Evaluation>& after;
};

/// Writes all_results.json, the model card and manifest.sha256 into output_dir. `device`: whose memory is reported.
/// Throws Error{kIo} or {kPermission}.
void write_results(const config::Config& config, const TrainingState& state, const Evaluations& evaluations,
                   at::Device device);

/// all_results.json of a model that was made of others' weights, with what it was made of, so that the same command
/// need not make it again. Throws Error{kIo} or {kPermission}.
void write_made(const std::filesystem::path& folder, nlohmann::ordered_json results, const std::string& identity);

/// What write_made was given, if the folder was made of the same and its files are those of its manifest; else nothing.
std::optional<nlohmann::ordered_json> made_earlier(const std::filesystem::path& folder, const std::string& identity);

/// manifest.sha256 of a result, without what says how the run stands and what has a manifest of its own. Throws
/// Error{kIo} or {kPermission}.
void write_manifest(const std::filesystem::path& folder);

/// Logs where the result is and how to try it.
void announce_result(const config::Config& config);

}  // namespace fettle::train
