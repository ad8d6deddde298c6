// SPDX-License-Identifier: Apache-2.0
/// UTF-8 as the Unicode standard defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace fettle {

/// The offset of the first byte that does not belong to valid UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);

/// True if `text` is empty or only ASCII white space.
bool is_blank(std::string_view text);

}  // namespace fettle
