// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace fettle::model {

using Block = std::function<at::Tensor(const at::Tensor&)>;

/// block(x), keeping only x: the backward runs the block again, with the random numbers of the first run if
/// `uses_random_numbers`. Gradients of weights that the block uses are accumulated in place, as without a checkpoint;
/// all results are equal bit for bit. With gradients disabled it is block(x).
at::Tensor checkpoint(const Block& block, const at::Tensor& x, bool uses_random_numbers);

}  // namespace fettle::model
