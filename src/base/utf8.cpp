// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace fettle {
namespace {

/// Length of the valid sequence at the start of `text` (not empty, lead byte ≥ 0x80), or 0. Table 3-7 of the standard.
size_t sequence_length(std::string_view text) {
  const auto byte = [text](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t lead = byte(0);
  if (lead >= 0xC2 && lead <= 0xDF) return continues(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const bool second = (lead == 0xE0 ? byte(1) >= 0xA0 : true) && (lead == 0xED ? byte(1) <= 0x9F : true);
    return continues(1) && second && continues(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const bool second = (lead == 0xF0 ? byte(1) >= 0x90 : true) && (lead == 0xF4 ? byte(1) <= 0x8F : true);
    return continues(1) && second && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

/// Whether `text` may be cut before `position`: not inside a character.
bool is_boundary(std::string_view text, size_t position) {
  return position == 0 || position >= text.size() || (static_cast<uint8_t>(text[position]) & 0xC0) != 0x80;
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  size_t position = 0;
  while (position < text.size()) {
    uint64_t eight = 0;
    while (position + sizeof(eight) <= text.size()) {
      std::memcpy(&eight, text.data() + position, sizeof(eight));
      if ((eight & 0x8080808080808080ULL) != 0) break;
      position += sizeof(eight);
    }
    if (position >= text.size()) break;
    if (static_cast<uint8_t>(text[position]) < 0x80) {
      ++position;
      continue;
    }
    const size_t length = sequence_length(text.substr(position));
    if (length == 0) return position;
    position += length;
  }
  return std::string_view::npos;
}

std::string one_line(std::string_view text) {
  std::string line;
  while (!text.empty()) {
    const size_t valid = std::min(find_invalid_utf8(text), text.size());
    for (const char c : text.substr(0, valid)) {
      const auto byte = static_cast<unsigned char>(c);
      line += byte < 0x20 || byte == 0x7f ? ' ' : c;
    }
    if (valid < text.size()) line += "\uFFFD";
    text.remove_prefix(std::min(valid + 1, text.size()));
  }
  return line;
}

std::string shorten(std::string_view text, size_t longest) {
  if (text.size() <= longest) return std::string(text);
  size_t end = longest / 2;
  size_t begin = text.size() - longest / 2;
  while (!is_boundary(text, end)) --end;
  while (!is_boundary(text, begin)) ++begin;
  return std::string(text.substr(0, end)) + "…" + std::string(text.substr(begin));
}

std::string quote(std::string_view text) {
  constexpr size_t kLongest = 120;
  size_t end = std::min(text.size(), kLongest);
  while (!is_boundary(text, end)) --end;
  return "'" + one_line(text.substr(0, end)) + (end < text.size() ? "…'" : "'");
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos;
}

}  // namespace fettle
