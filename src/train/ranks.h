// SPDX-License-Identifier: Apache-2.0
/// What the ranks of a run tell each other beside gradients.
#pragma once

#include <string>
#include <vector>

#include "dist/group.h"
#include "model/decoder.h"

namespace fettle::train {

/// Rank 0's text, on every rank. All ranks call it.
std::string share_text(dist::Group& group, const std::string& text);

/// Overwrites the tensors of every rank with rank 0's. All ranks call it, with equal shapes and types.
void share_tensors(dist::Group& group, const std::vector<model::NamedTensor>& tensors);

}  // namespace fettle::train
