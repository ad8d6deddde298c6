// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <variant>

#include "ops/grouped_weight.h"
#include "ops/quantized_weight.h"

namespace fettle::ops {

/// A matrix [O, C] as it is, or in few bits.
using Weight = std::variant<at::Tensor, QuantizedWeight, GroupedWeight>;

int64_t rows(const Weight& weight);
int64_t columns(const Weight& weight);
/// What is kept of it.
int64_t bytes(const Weight& weight);
/// The matrix in `type`; of one that is as it is, itself, whatever its type.
at::Tensor dense(const Weight& weight, at::ScalarType type);
/// The same matrix on a device.
Weight moved(const Weight& weight, at::Device device);

}  // namespace fettle::ops
