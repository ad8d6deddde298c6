// SPDX-License-Identifier: Apache-2.0
#include "train/shards.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <numeric>
#include <utility>

namespace fettle::train {

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

Shards::Shards(std::shared_ptr<dist::Group> group, int64_t stage, std::vector<model::NamedTensor> parameters)
    : group_(std::move(group)), stage_(group_->size() > 1 ? stage : 0), parameters_(std::move(parameters)) {
  if (!share_optimizer()) return;
  std::vector<int64_t> bytes;
  for (const model::NamedTensor& parameter : parameters_) bytes.push_back(parameter.tensor.numel());
  owners_ = share_out(bytes, group_->size());
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
  const c10::NoGradGuard no_gradients;
  std::vector<dist::Pending> pending;
  for (size_t i = 0; i < owners_.size(); ++i) {
    pending.push_back(group_->broadcast(parameters_[i].tensor.detach(), owners_[i]));
  }
  for (dist::Pending& each : pending) each.wait();
}

}  // namespace fettle::train
