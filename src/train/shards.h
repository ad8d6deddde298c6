// SPDX-License-Identifier: Apache-2.0
/// What the ranks of a run share out instead of each holding all of it (zero_stage).
///
/// Every trained parameter has one owner. Stage 1: the optimizer's state of a parameter lives only there, which updates
/// it and sends the others its new values. Stage 2: the sum of its gradients too arrives only there. Stage 3: the
/// weights of a layer are on one rank, and on the others only while the layer computes (model/gathered_layers.h). After
/// ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054), but by whole parameters, as torch's ZeroRedundancyOptimizer: names
/// and shapes stay what they are, so that a checkpoint does not depend on who owned what.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "config/config.h"
#include "dist/group.h"
#include "model/decoder.h"
#include "model/layer_sharing.h"
#include "model/spec.h"

namespace fettle::train {

/// Cuts a sequence of `bytes` into `parts` contiguous runs of about equal sums: the part of each element, ascending.
/// None is larger than sum/parts + the largest element.
std::vector<int64_t> share_out(const std::vector<int64_t>& bytes, int64_t parts);

/// Stage 3: the rank of every tensor of a model, the same for all of a layer, by name. `is_trained`: what is outside
/// the layers, and on all ranks, has its optimizer state on one and counts too.
std::map<std::string, int64_t> tensor_owners(const model::DecoderSpec& spec, int64_t ranks, bool is_trained);

/// The holders of the layers among them, and the exchange between the ranks of the group.
model::LayerSharing layer_sharing(const std::shared_ptr<dist::Group>& group, const model::DecoderSpec& spec,
                                  const std::map<std::string, int64_t>& owners);

/// Says what zero_stage changes beside memory.
void log_sharing(const config::Config& config, int64_t ranks);

class Shards {
 public:
  /// Nothing is shared out.
  Shards() = default;
  /// `parameters` in the order of the computation, the same on all ranks. A group of one process shares nothing out.
  /// `owners`: of the parameters, where stage 3 trains the layers' weights themselves, which are then with their owner
  /// alone.
  Shards(std::shared_ptr<dist::Group> group, int64_t stage, std::vector<model::NamedTensor> parameters,
         const std::map<std::string, int64_t>& owners = {});

  [[nodiscard]] bool share_optimizer() const { return stage_ >= 1; }
  [[nodiscard]] bool share_gradients() const { return stage_ >= 2; }

  /// The rank that owns each parameter; empty: every rank owns all.
  [[nodiscard]] const std::vector<int64_t>& owners() const { return owners_; }
  /// The parameters that this rank's optimizer updates.
  [[nodiscard]] std::vector<model::NamedTensor> owned() const;
  /// Those whose values every rank has.
  [[nodiscard]] std::vector<model::NamedTensor> held_by_all() const;
  [[nodiscard]] bool is_held_by_all(size_t parameter) const { return !is_elsewhere_[parameter]; }
  /// After the optimizer's step, on all ranks: every parameter that all hold gets its owner's values.
  void share_updated() const;
  /// What clip_gradients sums over: the ranks where each has the gradients of its own parameters alone, else null.
  [[nodiscard]] dist::Group* norm_group() const { return share_gradients() ? group_.get() : nullptr; }

 private:
  std::shared_ptr<dist::Group> group_;
  int64_t stage_ = 0;
  std::vector<model::NamedTensor> parameters_;
  std::vector<int64_t> owners_;
  std::vector<bool> is_elsewhere_;  ///< only its owner has the parameter's values
};

}  // namespace fettle::train
