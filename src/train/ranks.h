// SPDX-License-Identifier: Apache-2.0
/// What the ranks of a run tell each other beside gradients.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "config/config.h"
#include "dist/group.h"
#include "hub/tensor_source.h"
#include "model/decoder.h"

namespace fettle::train {

/// Options that change no number of the training, but decide when the ranks meet.
nlohmann::json shared_options(const config::Config& config);

/// How long the ranks wait for each other.
dist::GroupOptions group_options(const config::DistributedConfig& options);

/// Rank 0's text, on every rank. All ranks call it.
std::string share_text(dist::Group& group, const std::string& text);

/// Overwrites the tensors of every rank with rank 0's. All ranks call it, with equal shapes and types.
void share_tensors(dist::Group& group, const std::vector<model::NamedTensor>& tensors);

/// Throws Error{kConfig} if the ranks compute on different kinds of device, or two of them on one GPU. All ranks call
/// it.
void require_own_devices(dist::Group& group, at::Device device);

/// SHA-256 over names, types, shapes and contents of the tensors: of all bytes up to 256 MiB in all, of larger models a
/// page of every 256 KiB of a tensor, which tells one model from another but not every damage.
std::string weights_fingerprint(const hub::TensorSource& source);

}  // namespace fettle::train
