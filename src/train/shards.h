// SPDX-License-Identifier: Apache-2.0
/// What the ranks of a run share out instead of each holding all of it (zero_stage).
///
/// Every trained parameter has one owner. Stage 1: the optimizer's state of a parameter lives only there, which updates
/// it and sends the others its new values. Stage 2: the sum of its gradients too arrives only there. After ZeRO
/// (Rajbhandari et al. 2020, arXiv:1910.02054), but by whole parameters, as torch's ZeroRedundancyOptimizer: names and
/// shapes stay what they are, so that a checkpoint does not depend on who owned what.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dist/group.h"
#include "model/decoder.h"

namespace fettle::train {

/// Cuts a sequence of `bytes` into `parts` contiguous runs of about equal sums: the part of each element, ascending.
/// None is larger than sum/parts + the largest element.
std::vector<int64_t> share_out(const std::vector<int64_t>& bytes, int64_t parts);

class Shards {
 public:
  /// Nothing is shared out.
  Shards() = default;
  /// `parameters` in the order of the computation, the same on all ranks. A group of one process shares nothing out.
  Shards(std::shared_ptr<dist::Group> group, int64_t stage, std::vector<model::NamedTensor> parameters);

  [[nodiscard]] bool share_optimizer() const { return stage_ >= 1; }
  [[nodiscard]] bool share_gradients() const { return stage_ >= 2; }

  /// The rank that owns each parameter; empty: every rank owns all.
  [[nodiscard]] const std::vector<int64_t>& owners() const { return owners_; }
  /// The parameters that this rank's optimizer updates.
  [[nodiscard]] std::vector<model::NamedTensor> owned() const;
  /// After the optimizer's step, on all ranks: every parameter gets its owner's values.
  void share_updated() const;
  /// What clip_gradients sums over: the ranks where each has the gradients of its own parameters alone, else null.
  [[nodiscard]] dist::Group* norm_group() const { return share_gradients() ? group_.get() : nullptr; }

 private:
  std::shared_ptr<dist::Group> group_;
  int64_t stage_ = 0;
  std::vector<model::NamedTensor> parameters_;
  std::vector<int64_t> owners_;
};

}  // namespace fettle::train
