// SPDX-License-Identifier: Apache-2.0
/// Hand-made GGUF bytes for tests, right or wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "hub/support.h"

namespace fettle::hub {

inline constexpr uint32_t kUint32 = 4;
inline constexpr uint32_t kFloat32 = 6;
inline constexpr uint32_t kString = 8;
inline constexpr uint32_t kArray = 9;

inline std::string gguf_string(std::string_view text) {
  return little_endian<uint64_t>(text.size()) + std::string(text);
}

/// One metadata entry from the value's bytes.
inline std::string gguf_entry(std::string_view key, uint32_t type, const std::string& value) {
  return gguf_string(key) + little_endian(type) + value;
}
inline std::string gguf_entry(std::string_view key, uint32_t value) {
  return gguf_entry(key, kUint32, little_endian(value));
}
inline std::string gguf_entry(std::string_view key, float value) {
  return gguf_entry(key, kFloat32, little_endian(value));
}
inline std::string gguf_entry(std::string_view key, std::string_view value) {
  return gguf_entry(key, kString, gguf_string(value));
}

/// One tensor's entry; `dimensions` innermost first, as in the file.
inline std::string gguf_tensor(std::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type,
                               uint64_t offset) {
  std::string bytes = gguf_string(name) + little_endian(static_cast<uint32_t>(dimensions.size()));
  for (const uint64_t size : dimensions) bytes += little_endian(size);
  return bytes + little_endian(type) + little_endian(offset);
}

struct GgufParts {
  std::vector<std::string> entries;
  std::vector<std::string> tensors;
  size_t data_size = 0;
  uint32_t version = 3;
};

inline std::string make_gguf(const GgufParts& parts) {
  std::string bytes = "GGUF" + little_endian(parts.version) + little_endian<uint64_t>(parts.tensors.size()) +
                      little_endian<uint64_t>(parts.entries.size());
  for (const std::string& entry : parts.entries) bytes += entry;
  for (const std::string& tensor : parts.tensors) bytes += tensor;
  if (!parts.tensors.empty()) bytes.append((32 - bytes.size() % 32) % 32, '\0');
  return bytes + std::string(parts.data_size, '\0');
}

}  // namespace fettle::hub
