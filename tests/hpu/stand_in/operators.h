// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace fettle::gaudi_stand_in {

/// A result of the CPU as a tensor of the device, written by the pending graph.
at::Tensor to_device(const at::Tensor& result);

}  // namespace fettle::gaudi_stand_in
