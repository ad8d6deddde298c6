// SPDX-License-Identifier: Apache-2.0
/// Checkpoints: output_dir/checkpoint-<step>/, complete or not there at all.
///
/// A folder is written under a temporary name, every file fsynced, the manifest (sizes and BLAKE3 hashes of all other
/// files) last, then renamed. So a folder with that name is whole unless the disk failed, and the manifest tells. One
/// that is written again keeps its old content as checkpoint-<step>.replaced until the new one is on the disk; it
/// counts as long as there is no other of its step.
///   adapter_model.safetensors  or, for full fine-tuning, model.safetensors: the float32 masters
///   optimizer.safetensors      means, squared means and step of every parameter
///   trainer_state.json         position in the data, counts, schedule, and what the run is
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "model/decoder.h"

namespace fettle::train {

inline constexpr const char* kOptimizerFile = "optimizer.safetensors";

/// The live tensors of a run and the numbers beside them.
struct Snapshot {
  std::string weights_file;  ///< adapter_model.safetensors or model.safetensors
  std::vector<model::NamedTensor> weights;
  std::vector<model::NamedTensor> optimizer;
  nlohmann::json state;  ///< trainer_state.json
};

/// Adds further files, e.g. adapter_config.json, to a folder that is being written.
using AddFiles = std::function<void(const std::filesystem::path&)>;

/// Writes output_dir/checkpoint-<step> and returns its path; one of that name is replaced. Throws Error{kDiverged} for
/// a tensor that is not finite, {kIo} or {kPermission}; then nothing of it remains and older checkpoints are untouched.
std::filesystem::path write_checkpoint(const std::filesystem::path& output_dir, int64_t step, const Snapshot& snapshot,
                                       const AddFiles& add_files = {});

/// Writes the files of tensors into a folder and returns the BLAKE3 hash of each.
using WriteTensors = std::function<std::map<std::string, std::string>(const std::filesystem::path&)>;

/// The same with the files of tensors left to `write_tensors`.
std::filesystem::path write_checkpoint(const std::filesystem::path& output_dir, int64_t step,
                                       const nlohmann::json& state, const WriteTensors& write_tensors,
                                       const AddFiles& add_files);

/// Overwrites the snapshot's tensors from a checkpoint. Throws Error{kData} if it does not fit.
void restore_checkpoint(const std::filesystem::path& folder, const Snapshot& snapshot);

/// trainer_state.json of a checkpoint. Throws Error{kData} if it is not a JSON object.
nlohmann::json read_checkpoint_state(const std::filesystem::path& folder);

/// The step that the folder's name says; none for any other name.
std::optional<int64_t> checkpoint_step(const std::filesystem::path& folder);

/// Whether an error of reading says nothing about what is in the file: the disk, rights or memory failed, and it may be
/// whole.
bool leaves_open(const Error& error);

/// Empty if all files are there with the sizes and hashes of the manifest; else what is wrong, naming the file. Throws
/// Error{kIo}, {kPermission} or {kOutOfMemory} for a file that cannot be read: it may be whole.
std::string why_broken(const std::filesystem::path& folder);

/// checkpoint-<step> folders, ascending by step, broken ones included. Throws Error{kIo} or {kPermission} if output_dir
/// cannot be read; one that does not exist has none.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& output_dir);

/// Removes the checkpoints of steps after `step`, named in the log: a run that continues at `step` has found them
/// broken or another run's, or was told to go back, and would mistake them for its own.
void remove_checkpoints_after(const std::filesystem::path& output_dir, int64_t step);

/// Removes what does not belong to the newest `keep` checkpoints (0: keeps all) of which all files are there in their
/// sizes, and what killed runs left half written. Hashes are not compared: that reads gigabytes at every save.
void prune_checkpoints(const std::filesystem::path& output_dir, int64_t keep);

}  // namespace fettle::train
