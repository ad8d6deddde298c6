// SPDX-License-Identifier: Apache-2.0
#include "train/shards.h"

#include <c10/core/GradMode.h>
#include <c10/util/accumulate.h>
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

#include "base/log.h"

namespace fettle::train {
namespace {

/// What goes to one rank as a whole: "model.layers.7" of its tensors, any other tensor by itself.
std::string unit_of(const std::string& name) {
  return model::is_in_layer(name) ? name.substr(0, name.find('.', std::string_view("model.layers.").size())) : name;
}

}  // namespace

std::vector<int64_t> share_out(const std::vector<int64_t>& bytes, int64_t parts) {
  const auto sum = static_cast<double>(std::accumulate(bytes.begin(), bytes.end(), int64_t{0}));
  std::vector<int64_t> owners;
  double before = 0;
  for (const int64_t each : bytes) {  // the part that its middle falls into
    const double middle = before + static_cast<double>(each) / 2;
    const double part = sum > 0 ? middle * static_cast<double>(parts) / sum : 0;
    owners.push_back(std::min(parts - 1, static_cast<int64_t>(part)));
    before += static_cast<double>(each);
  }
  return owners;
}

std::map<std::string, int64_t> tensor_owners(const model::DecoderSpec& spec, int64_t ranks, bool is_trained) {
  const std::vector<model::TensorShape> tensors = model::expected_tensors(spec);
  std::vector<std::string> units;
  std::vector<int64_t> sizes;
  for (const model::TensorShape& tensor : tensors) {
    const std::string unit = unit_of(tensor.name);
    if (units.empty() || units.back() != unit) {
      units.push_back(unit);
      sizes.push_back(0);
    }
    const bool counts = is_trained || model::is_in_layer(unit);
    if (counts) sizes.back() += c10::multiply_integers(tensor.shape);
  }
  const std::vector<int64_t> parts = share_out(sizes, ranks);
  std::map<std::string, int64_t> by_unit;
  for (size_t i = 0; i < units.size(); ++i) by_unit[units[i]] = parts[i];
  std::map<std::string, int64_t> owners;
  for (const model::TensorShape& tensor : tensors) owners[tensor.name] = by_unit.at(unit_of(tensor.name));
  return owners;
}

model::LayerSharing layer_sharing(const std::shared_ptr<dist::Group>& group, const model::DecoderSpec& spec,
                                  const std::map<std::string, int64_t>& owners) {
  model::LayerSharing sharing{.holders = {}, .rank = group->rank(), .broadcast = {}};
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    sharing.holders.push_back(owners.at(fmt::format("model.layers.{}.input_layernorm.weight", layer)));
  }
  sharing.broadcast = [group](const at::Tensor& tensor, int64_t holder) -> model::LayerSharing::Wait {
    const auto pending = std::make_shared<dist::Pending>(group->broadcast(tensor, holder));
    return [pending] { pending->wait(); };
  };
  return sharing;
}

void log_sharing(const config::Config& config, int64_t ranks) {
  const int64_t stage = config.distributed.zero_stage;
  if (stage == 0) return;
  if (ranks == 1) {
    log::info("zero_stage {} has no effect: there is one process, and nothing to share out", stage);
    return;
  }
  if (config.training.async_save) {
    log::info("async_save has no effect with zero_stage {}: the ranks stop while they save together", stage);
  }
  if (stage == 3 && !config.training.gradient_checkpointing) {
    log::info("zero_stage 3 needs gradient_checkpointing: it is on");
  }
}

Shards::Shards(std::shared_ptr<dist::Group> group, int64_t stage, std::vector<model::NamedTensor> parameters,
               const std::map<std::string, int64_t>& owners)
    : group_(std::move(group)),
      stage_(group_->size() > 1 ? stage : 0),
      parameters_(std::move(parameters)),
      is_elsewhere_(parameters_.size(), false) {
  if (!share_optimizer()) return;
  if (owners.empty()) {
    std::vector<int64_t> sizes;
    for (const model::NamedTensor& parameter : parameters_) sizes.push_back(parameter.tensor.numel());
    owners_ = share_out(sizes, group_->size());
    return;
  }
  for (size_t i = 0; i < parameters_.size(); ++i) {
    owners_.push_back(owners.at(parameters_[i].name));
    is_elsewhere_[i] = model::is_in_layer(parameters_[i].name);
  }
}

std::vector<model::NamedTensor> Shards::held_by_all() const {
  std::vector<model::NamedTensor> held;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (is_held_by_all(i)) held.push_back(parameters_[i]);
  }
  return held;
}

std::vector<model::NamedTensor> Shards::owned() const {
  if (owners_.empty()) return parameters_;
  std::vector<model::NamedTensor> own;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (owners_[i] == group_->rank()) own.push_back(parameters_[i]);
  }
  return own;
}

void Shards::share_updated() const {
  if (owners_.empty()) return;
  const c10::NoGradGuard no_gradients;
  std::vector<dist::Group::Broadcast> broadcasts;
  for (size_t i = 0; i < owners_.size(); ++i) {
    if (is_held_by_all(i)) broadcasts.push_back({parameters_[i].tensor.detach(), owners_[i]});
  }
  group_->broadcast_all(broadcasts);
}

}  // namespace fettle::train
