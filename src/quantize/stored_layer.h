// SPDX-License-Identifier: Apache-2.0
/// Tensors and their bytes.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "hub/quantization.h"

namespace fettle::quantize {

/// The tensor, of any float type, with the bytes it has in `type`.
hub::StoredTensor store(const std::string& name, const at::Tensor& tensor, hub::DType type);

}  // namespace fettle::quantize
