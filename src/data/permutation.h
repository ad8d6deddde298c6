// SPDX-License-Identifier: Apache-2.0
/// Random orders that every machine, compiler and version computes alike.
#pragma once

#include <cstdint>
#include <vector>

namespace fettle::data {

/// 64 bits of which each depends on all bits of `value` (the finaliser of SplitMix64); a bijection, mix(0) is 0.
uint64_t mix(uint64_t value);

/// A permutation of 0 … size-1 by (seed, stream): Fisher-Yates over SplitMix64 (Steele, Lea, Flood: Fast Splittable
/// Pseudorandom Number Generators, 2014) with Lemire's unbiased bounded draw. std::shuffle would differ between
/// libraries.
std::vector<int64_t> permutation(int64_t size, uint64_t seed, uint64_t stream);

}  // namespace fettle::data
