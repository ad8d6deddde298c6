// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

namespace fettle::model {

std::vector<at::Tensor> project(const at::Tensor& x, std::initializer_list<const Linear*> layers,
                                const ops::LoraOptions& options) {
  std::vector<ops::LoraProjection> projections;
  for (const Linear* layer : layers) {
    projections.push_back({.weight = layer->weight.weight(),
                           .bias = layer->bias.has_value() ? layer->bias->value() : at::Tensor(),
                           .a = layer->lora.has_value() ? layer->lora->a.value() : at::Tensor(),
                           .b = layer->lora.has_value() ? layer->lora->b.value() : at::Tensor()});
  }
  return ops::lora_linear(x, projections, options);
}

}  // namespace fettle::model
