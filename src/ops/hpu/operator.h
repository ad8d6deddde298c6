// SPDX-License-Identifier: Apache-2.0
/// Operators that the Gaudi bridge registers in torch's dispatcher under hpu::. They change from release to release, so
/// one is used only where its arguments are those that this program knows.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <optional>
#include <vector>

namespace fettle::ops::hpu {

/// Whether x is on a card, in a type that the bridge's operators take, and fused operations are on.
bool may_use_bridge(const at::Tensor& x);

class Operator {
 public:
  /// `schema`: as it was first published, in torch's notation, e.g. "hpu::rms_norm(Tensor data_in, …) -> (…)". A later
  /// one may append arguments that have defaults. What is registered otherwise is not used, and that is said once.
  /// To be made after the bridge is loaded.
  explicit Operator(const char* schema);

  [[nodiscard]] bool is_usable() const { return handle_.has_value(); }
  /// Calls it with the arguments of the schema that is known. Only if it is usable.
  [[nodiscard]] std::vector<c10::IValue> call(std::vector<c10::IValue> arguments) const;

 private:
  std::optional<c10::OperatorHandle> handle_;
};

}  // namespace fettle::ops::hpu
