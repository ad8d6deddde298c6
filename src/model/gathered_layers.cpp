// SPDX-License-Identifier: Apache-2.0
#include "model/gathered_layers.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <utility>

namespace fettle::model {

GatheredLayers::GatheredLayers(LayerSharing sharing, std::vector<std::vector<Parameter*>> layers)
    : sharing_(std::move(sharing)) {
  for (std::vector<Parameter*>& weights : layers) layers_.push_back({.weights = std::move(weights)});
}

GatheredLayers::Use GatheredLayers::use(int64_t index) {
  Layer& layer = layers_[static_cast<size_t>(index)];
  start(index);
  const bool is_backward = at::GradMode::is_enabled();
  start(is_backward ? index - 1 : index + 1);
  if (!layer.is_here) {
    for (const LayerSharing::Wait& wait : layer.waits) wait();
    layer.waits.clear();
    for (size_t i = 0; i < layer.arriving.size(); ++i) layer.weights[i]->arrive(std::move(layer.arriving[i]));
    layer.arriving.clear();
    layer.is_here = true;
  }
  if (is_backward) keeps_last_ = false;
  return {*this, index};
}

void GatheredLayers::start(int64_t index) {
  if (index < 0 || index >= static_cast<int64_t>(layers_.size())) return;
  Layer& layer = layers_[static_cast<size_t>(index)];
  if (std::exchange(layer.is_started, true)) return;
  const c10::NoGradGuard no_gradients;
  for (Parameter* weight : layer.weights) {
    at::Tensor tensor = weight->stored();
    if (!sharing_.holds(index)) {
      tensor = at::empty(tensor.sizes(), tensor.options());
      layer.arriving.push_back(tensor);
    }
    layer.waits.push_back(sharing_.broadcast(tensor, sharing_.holders[static_cast<size_t>(index)]));
  }
}

void GatheredLayers::release(int64_t index) {
  const bool is_last = index + 1 == static_cast<int64_t>(layers_.size());
  if (is_last && keeps_last_) return;
  Layer& layer = layers_[static_cast<size_t>(index)];
  layer.is_started = layer.is_here = false;
  if (sharing_.holds(index)) return;
  for (Parameter* weight : layer.weights) weight->leave();
}

}  // namespace fettle::model
