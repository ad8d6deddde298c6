// SPDX-License-Identifier: Apache-2.0
/// What is in output_dir already, and so whether a run starts, continues, or has nothing to do.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/file_lock.h"
#include "config/config.h"

namespace fettle::train {

/// What run it is, and whether it is complete.
inline constexpr const char* kRunFile = "run.json";

/// What makes two runs the same run: every training option that changes the mathematics, and the data.
///   {"options": {name: value}, "data_options": {…}, "dataset": fingerprint, "model": fingerprint of the base's
///   weights}
/// Options that only say how fast, how often or where (threads, logging, saving, paths of caches) are left out. The
/// data's options count through the fingerprint; they are kept to explain a difference.
nlohmann::json run_identity(const config::Config& config, const std::string& dataset_fingerprint,
                            const std::string& model_fingerprint = {});

/// Throws Error{kConfig} naming the options that differ, with both values; `place` is where `stored` was found.
void require_same_run(const nlohmann::json& stored, const nlohmann::json& current, const std::filesystem::path& place);

struct StartingPoint {
  bool finished = false;                                 ///< the run is complete: nothing to train
  std::optional<std::filesystem::path> checkpoint = {};  ///< continue from here; none: start at the first step
  bool keeps_folder = false;                             ///< output_dir holds this run's own earlier part
  bool operator==(const StartingPoint&) const = default;
};

/// Looks at output_dir and resume_from_checkpoint; changes nothing. An unfinished run of the same identity continues
/// even with overwrite_output_dir, so that a restarted job never throws its own work away; so does a finished one whose
/// result is gone. Of the checkpoints in output_dir the newest counts that is whole and of this run; the others are
/// named in the log. Throws Error{kConfig} for a folder that holds something else or another run, also where the
/// checkpoint that was named lies elsewhere; {kNoInput} or {kData} for a named checkpoint that cannot be used; {kData}
/// where there are checkpoints and none can be used; {kIo} or {kPermission} where something cannot be read.
StartingPoint find_starting_point(const config::Config& config, const nlohmann::json& identity);

/// The template_date of the run that resume_from_checkpoint would continue; empty if there is none.
std::string noted_template_date(const config::OutputConfig& options);

/// Makes output_dir, removes what an earlier run left there unless this one continues it, and notes the identity in
/// run.json. An adapter there that this run starts from (adapter_name_or_path is output_dir) stays until the new one
/// replaces it: a restart before the first checkpoint needs it. Throws Error{kIo} or {kPermission}.
void begin_run(const config::Config& config, const nlohmann::json& identity, const StartingPoint& start);
/// Notes that the run is complete.
void finish_run(const std::filesystem::path& output_dir, const nlohmann::json& identity);

/// One process at a time writes a result in a folder: the others would overwrite it and its checkpoints.
class FolderLock {
 public:
  /// Makes the folder. Throws Error{kUnavailable} if another process holds its lock, {kIo} or {kPermission} if nothing
  /// can be written there. On a file system without locks it holds nothing, with a warning.
  explicit FolderLock(const std::filesystem::path& folder);

 private:
  std::optional<FileLock> lock_;
};

/// Throws Error{kIo} if output_dir no longer holds the run that began there: its volume was unmounted, or the folder
/// was removed. What lies beneath a mount point would take a checkpoint without complaint.
void require_in_place(const std::filesystem::path& output_dir);

/// Whether the folder holds nothing but what volumes put there themselves; also if it is not there.
bool is_empty_folder(const std::filesystem::path& folder);

/// Whether the folder holds a run already, so that looking for a starting point needs its lock.
bool holds_run(const std::filesystem::path& folder);

/// Where TensorBoard's event files of a run go: logging_dir, or runs in output_dir.
std::filesystem::path event_folder(const config::Config& config);

}  // namespace fettle::train
