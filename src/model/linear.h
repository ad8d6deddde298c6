// SPDX-License-Identifier: Apache-2.0
/// A linear layer with, perhaps, a LoRA adapter beside it.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "model/parameter.h"
#include "ops/lora_linear.h"

namespace fettle::model {

struct Lora {
  Parameter a;  ///< [r, C]
  Parameter b;  ///< [O, r]
};

struct Linear {
  std::string name;  ///< module name, e.g. model.layers.0.self_attn.q_proj
  Parameter weight;  ///< [O, C]
  std::optional<Parameter> bias;
  std::optional<Lora> lora;
};

/// Every layer's output for the same x: [T, C] → [T, O] each.
std::vector<at::Tensor> project(const at::Tensor& x, std::initializer_list<const Linear*> layers,
                                const ops::LoraOptions& options);

}  // namespace fettle::model
