// SPDX-License-Identifier: Apache-2.0
/// The result of a run whose weights are shared out among its ranks (zero_stage 3).
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "dist/group.h"
#include "train/inputs.h"
#include "train/shared_checkpoint.h"

namespace fettle::train {

/// As save_full_model, by rank 0, which asks the holders for one tensor after the other. All ranks call it.
void save_shared_model(dist::Group& group, const std::filesystem::path& folder,
                       const std::vector<SharedTensor>& weights, const ModelInputs& inputs, uint64_t max_shard_size);

/// Compares the saved files, bit by bit, with the weights in memory: no rank could hold the model that is read back.
/// All ranks call it. Throws Error{kInternal} on rank 0 naming a tensor that differs.
void verify_shared_model(dist::Group& group, const std::filesystem::path& folder,
                         const std::vector<SharedTensor>& weights, const ModelInputs& inputs);

/// The same for an adapter, which every rank holds.
void verify_adapter(const std::filesystem::path& folder, const std::vector<model::NamedTensor>& tensors);

}  // namespace fettle::train
