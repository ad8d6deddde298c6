// SPDX-License-Identifier: Apache-2.0
/// Checkpoints of a run whose ranks share its state out: rank 0 writes and reads the same files as that of a run of one
/// process, one tensor at a time, and the ranks that hold the tensors send and receive them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dist/group.h"
#include "model/decoder.h"
#include "train/saver.h"
#include "train/shards.h"

namespace fettle::train {

/// A float32 tensor that every rank knows of.
struct SharedTensor {
  static constexpr int64_t kAllRanks = -1;

  std::string name;
  std::vector<int64_t> shape;
  int64_t holder = kAllRanks;
  at::Tensor tensor;  ///< contiguous; undefined on ranks that do not hold it
};

/// As Snapshot, on every rank.
struct SharedSnapshot {
  std::string weights_file;
  std::vector<SharedTensor> weights;
  std::vector<SharedTensor> optimizer;
  nlohmann::json state;  ///< rank 0's counts
};

/// The trained weights of a run.
std::vector<SharedTensor> shared_weights(const std::vector<model::NamedTensor>& parameters, const Shards& shards,
                                         int64_t rank);
/// What AdamW::state() of all ranks together is: of every parameter, with its owner. `own`: that of this rank.
std::vector<SharedTensor> shared_optimizer_state(const std::vector<model::NamedTensor>& parameters,
                                                 const Shards& shards, const std::vector<model::NamedTensor>& own);

/// write_finite on rank 0; the others send it what they hold. Never more than one tensor of the others is in rank 0's
/// memory. All ranks call it. Returns the file's hash on rank 0. Throws on rank 0 Error{kDiverged} for a tensor that
/// is not finite, {kIo} or {kPermission}.
std::string write_shared(dist::Group& group, const std::filesystem::path& file, std::vector<SharedTensor> tensors,
                         const std::map<std::string, std::string>& metadata);

/// Overwrites the tensors where they are held. Rank 0 alone reads. All ranks call it. Throws on rank 0 Error{kData} if
/// the file does not fit.
void restore_shared(dist::Group& group, const std::filesystem::path& file, const std::vector<SharedTensor>& tensors);
void restore_shared_checkpoint(dist::Group& group, const std::filesystem::path& folder, const SharedSnapshot& snapshot);

/// Saves together: all ranks call `save` at the same step, which returns when all is on the disk. After it has thrown,
/// it saves no more: the ranks are not at the same place any longer.
class SharedSaver : public Saver {
 public:
  SharedSaver(std::shared_ptr<dist::Group> group, CheckpointWriter::Options options,
              std::function<SharedSnapshot(const Run&)> snapshot, AddFiles add_files);

  void save(const Run& run) override;
  void finish() override {}
  [[nodiscard]] double expected_seconds() const override { return writer_.expected_seconds(); }
  [[nodiscard]] bool takes_all_ranks() const override { return true; }

 private:
  void write(int64_t step, const SharedSnapshot& snapshot);

  std::shared_ptr<dist::Group> group_;
  CheckpointWriter writer_;
  std::function<SharedSnapshot(const Run&)> snapshot_;
  nlohmann::json saved_;  ///< the state that was saved last
  bool has_failed_ = false;
};

}  // namespace fettle::train
