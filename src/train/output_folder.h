// SPDX-License-Identifier: Apache-2.0
/// What is in output_dir already, and so whether a run starts, continues, or has nothing to do.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "config/config.h"

namespace fettle::train {

/// What makes two runs the same run: every training option that changes the mathematics, and the data.
///   {"options": {name: value}, "data_options": {…}, "dataset": fingerprint}
/// Options that only say how fast, how often or where (threads, logging, saving, paths of caches) are left out. The
/// data's options count through the fingerprint; they are kept to explain a difference.
nlohmann::json run_identity(const config::Config& config, const std::string& dataset_fingerprint);

/// Throws Error{kConfig} naming the options that differ, with both values; `place` is where `stored` was found.
void require_same_run(const nlohmann::json& stored, const nlohmann::json& current, const std::filesystem::path& place);

struct StartingPoint {
  bool finished = false;                                 ///< the run is complete: nothing to train
  std::optional<std::filesystem::path> checkpoint = {};  ///< continue from here; none: start at the first step
};

/// Looks at output_dir and resume_from_checkpoint; changes nothing. An unfinished run of the same identity continues
/// even with overwrite_output_dir, so that a restarted job never throws its own work away. Throws Error{kConfig} for a
/// folder that holds something else or another run, {kNoInput} or {kData} for a checkpoint that was named and cannot be
/// used.
StartingPoint find_starting_point(const config::OutputConfig& options, const nlohmann::json& identity);

/// The template_date of the run that resume_from_checkpoint would continue; empty if there is none.
std::string noted_template_date(const config::OutputConfig& options);

/// Makes output_dir, removes what an earlier run left there unless this one continues it, and notes the identity in
/// run.json. Throws Error{kIo} or {kPermission}.
void begin_run(const config::OutputConfig& options, const nlohmann::json& identity, const StartingPoint& start);
/// Notes that the run is complete.
void finish_run(const std::filesystem::path& output_dir, const nlohmann::json& identity);

}  // namespace fettle::train
