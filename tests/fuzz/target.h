// SPDX-License-Identifier: Apache-2.0
/// A fuzz target defines `run_target`: parse `input`, and throw nothing but fettle::Error for what is wrong with it.
/// libFuzzer (-DFETTLE_FUZZ=ON) or replay.cpp (otherwise) calls LLVMFuzzerTestOneInput with inputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace fettle::fuzz {

void run_target(std::string_view input);

}  // namespace fettle::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
