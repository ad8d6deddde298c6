// SPDX-License-Identifier: Apache-2.0
/// A device that stands in for a GPU where there is none: torch's CUDA device type, computed by the CPU.
///
/// Its memory cannot be touched except by its own operations, so code that reads a device's tensor as if it were the
/// host's crashes here as it would there. What it cannot show: streams that run ahead, speed, and the numbers of
/// cuBLAS. After torch's test/cpp_extensions/open_registration_extension/torch_openreg.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fettle::stand_in {

/// How often the host has waited for the device so far: for a number, or for a copy that may not go on by itself.
int64_t waits();

/// The same bytes as a tensor of the CPU.
at::Tensor on_host(const at::Tensor& tensor);

/// Where the bytes of the device at `pointer` can be touched; any other address is returned as it is.
void* open_address(const void* pointer);

}  // namespace fettle::stand_in
