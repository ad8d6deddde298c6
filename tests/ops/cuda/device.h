// SPDX-License-Identifier: Apache-2.0
/// The device that front_doors_test.cpp runs on: a GPU (gpu.cpp), or its fake in this machine's memory (fake_gpu.cpp).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace fettle::ops::testing {

/// Makes tensors on at::kCUDA possible and sets the table of kernels. Returns why it cannot, or nothing. Call it first.
std::string start_cuda();

/// Back to torch's operations alone.
void stop_cuda();

/// Why there is no device at all; empty where there is. It may be called before anything else is.
std::string why_no_device();

/// Whether its random numbers are those that the CPU draws from the same seed.
bool draws_as_the_cpu();

/// How often the host has waited for the device so far; nothing where that is not known.
std::optional<int64_t> waits_for_device();

}  // namespace fettle::ops::testing
