// SPDX-License-Identifier: Apache-2.0
/// The weights of a base with adapters merged into it, one tensor at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hub/model_folder.h"
#include "model/spec.h"
#include "train/adapters.h"

namespace fettle::train {

/// W + Σ weight·scaling·B·A in float32, rounded once to the type that the base has the tensor in; what no adapter
/// touches keeps its bytes. A GGUF base becomes one of save.h's stored_type throughout. Holds one tensor in memory.
class MergedWeights {
 public:
  /// Throws Error{kData} naming tensors of the base that are missing, extra or mis-shaped.
  MergedWeights(const hub::ModelFolder& base, const model::DecoderSpec& spec, std::vector<WeightedAdapter> adapters);

  /// Names, types and shapes, without bytes.
  [[nodiscard]] const std::vector<hub::TensorView>& views() const { return views_; }
  /// Whether embedding and head were one tensor and are two now: an adapter holds one of them whole.
  [[nodiscard]] bool unties() const { return unties_; }
  /// Whether a changed tensor is of `type`.
  [[nodiscard]] bool rounds_to(hub::DType type) const;
  /// The bytes of a view, until the next call. Throws Error{kDiverged} naming a tensor with NaN or infinity.
  std::span<const std::byte> bytes(const hub::TensorView& view);

 private:
  [[nodiscard]] const hub::TensorView& stored(const std::string& name) const;
  [[nodiscard]] bool is_changed(const hub::TensorView& view) const;
  [[nodiscard]] at::Tensor compute(const std::string& name) const;

  std::shared_ptr<const hub::TensorSource> base_;
  std::vector<WeightedAdapter> adapters_;
  std::vector<std::shared_ptr<const hub::TensorSource>> sources_;  // of the adapters
  std::vector<hub::TensorView> views_;
  bool unties_ = false;
  at::Tensor current_;
  std::span<const std::byte> read_;  // of the base, for the current tensor
};

}  // namespace fettle::train
