// SPDX-License-Identifier: Apache-2.0
/// UTF-8 as the Unicode standard defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace fettle {

/// The offset of the first byte that does not belong to valid UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);

/// True if `text` is empty or only ASCII white space.
bool is_blank(std::string_view text);

/// `text` fit for one line of a log or message: control characters become spaces, bytes that are not UTF-8 U+FFFD.
std::string one_line(std::string_view text);

/// `text` of at most about `longest` bytes: whole characters of its beginning and its end, with "…" between them.
std::string shorten(std::string_view text, size_t longest);

/// Foreign text in a message: one_line of its first 120 bytes (whole characters), in single quotes.
std::string quote(std::string_view text);

}  // namespace fettle
