// SPDX-License-Identifier: Apache-2.0
/// Equality of documents, for counting.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

namespace fettle::data {

/// 64 bits over tokens and targets. Only for counting duplicates in one process: it may differ between machines, and
/// two of a million documents collide with a chance of 3 in 100 million.
inline uint64_t document_hash(std::span<const int32_t> ids, std::span<const int32_t> labels) {
  const auto hash = [](std::span<const int32_t> values) {
    return std::hash<std::string_view>{}({reinterpret_cast<const char*>(values.data()), values.size_bytes()});
  };
  return hash(ids) * 0x9E3779B97F4A7C15ULL + hash(labels);
}

}  // namespace fettle::data
