// SPDX-License-Identifier: Apache-2.0
/// A weight of the model: in the type products use and, if it is trained, as the float32 master the optimizer changes.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "ops/weight.h"

namespace fettle::model {

class Parameter {
 public:
  /// Frozen. `value` may be mapped memory: it is never written.
  Parameter(std::string name, at::Tensor value);
  /// One whose value is on another rank, and here only between `arrive` and `leave`. It takes no memory.
  static Parameter elsewhere(std::string name, at::IntArrayRef shape, at::ScalarType type);
  /// A frozen matrix that is in few bits already, and `type` in products.
  static Parameter grouped(std::string name, ops::GroupedWeight weight, at::ScalarType type);

  /// As transformers names it, e.g. model.norm.weight, without PEFT's prefix.
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const at::Tensor& stored() const { return value_; }
  /// What products use. If it is trained, its gradient arrives at the master as float32.
  [[nodiscard]] at::Tensor value() const;
  /// The same of a matrix that may be quantized, which has no value().
  [[nodiscard]] ops::Weight weight() const;
  /// Rows of a matrix [V, C]: value()[indices] for int64 indices [T], bit for bit. The gradient of a row is summed over
  /// its occurrences in float32: in bfloat16 the sum of a frequent token stops growing after a few hundred of them.
  [[nodiscard]] at::Tensor rows(const at::Tensor& indices) const;

  /// Moves one that is not trained to where it is computed with.
  void move_to(at::Device device);

  /// Keeps a frozen matrix in few bits from here on. The value is given up.
  void quantize(ops::WeightFormat format);
  [[nodiscard]] bool is_quantized() const { return quantized_.has_value(); }

  [[nodiscard]] bool is_trained() const { return master_.defined(); }
  /// float32 leaf that requires gradients; undefined if the parameter is frozen.
  [[nodiscard]] const at::Tensor& master() const { return master_; }
  /// Trains the parameter from a copy of `start` on, in float32, on the value's device. The frozen value is given up.
  void train(const at::Tensor& start);
  /// The same for one that is elsewhere, as its master is: a leaf of its shape that only collects the gradient.
  void train_elsewhere();
  /// Whether the value is a copy of the master, in another type, that goes stale when the master changes.
  [[nodiscard]] bool copies_master() const;

  [[nodiscard]] bool is_elsewhere() const { return is_elsewhere_; }
  /// The value of one that is elsewhere, in the compute type.
  void arrive(at::Tensor value);
  void leave();

 private:
  std::string name_;
  at::Tensor value_;
  at::Tensor master_;
  std::optional<ops::Weight> quantized_;  ///< in few bits
  bool is_elsewhere_ = false;
};

}  // namespace fettle::model
