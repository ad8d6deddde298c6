// SPDX-License-Identifier: Apache-2.0
/// How much memory a training process will need, from shapes alone.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "model/spec.h"

namespace fettle::train {

struct MemoryPart {
  std::string_view what;
  double bytes;
  bool is_common = false;  ///< the processes of a machine have it once: a mapped file, what rank 0 alone keeps
};

struct MemoryPlan {
  std::vector<MemoryPart> parts;
  /// Of one process; and of so many on one machine.
  [[nodiscard]] double peak_bytes(int64_t processes = 1) const;
};

/// What a plan is made of besides the options.
struct PlannedRun {
  int64_t trained_weights;
  double stored_bytes;  ///< of the base's weights in their file
  bool is_mapped;       ///< the file's bytes are what the model computes with
  int64_t tokens;       ///< of the largest micro-batch
  int64_t longest;      ///< document, in tokens
  int64_t threads;
  int64_t processes;
  bool is_on_gpu = false;  ///< of which it has one
};

/// The peak resident memory of one process that trains on a CPU. Within 10 % of what is measured, for models whose
/// needs are not lost beside the program's own (tests/interop/test_memory_plan.py). Or of a GPU's memory, of which
/// nothing has been measured yet.
MemoryPlan plan_memory(const model::DecoderSpec& spec, const config::Config& config, const PlannedRun& run);

/// Bytes of a checkpoint: the trained weights in float32 and the optimizer's two means.
double checkpoint_bytes(int64_t trained_weights);

}  // namespace fettle::train
