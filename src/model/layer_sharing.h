// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace fettle::model {

/// Which rank holds which layer, where a layer's weights are on one rank alone (stage 3 of ZeRO).
struct LayerSharing {
  /// Returns when a broadcast is done on this rank.
  using Wait = std::function<void()>;

  std::vector<int64_t> holders;  ///< a rank for each layer
  int64_t rank = 0;              ///< this one
  /// Starts to send a contiguous tensor from the rank `holder` to the others, whose tensor is overwritten. All ranks
  /// call it in the same order.
  std::function<Wait(const at::Tensor& tensor, int64_t holder)> broadcast;

  [[nodiscard]] bool holds(int64_t layer) const { return holders[static_cast<size_t>(layer)] == rank; }
};

}  // namespace fettle::model
