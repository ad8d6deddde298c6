// SPDX-License-Identifier: Apache-2.0
/// From what was written to an option's member, with every check that concerns one option alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "config/option_table.h"
#include "config/reader.h"

namespace fettle::config {

/// Sets the option's member. Throws Error{kUsage} naming option, value, `where`, and what is allowed: wrong type, out
/// of range, not among the choices, not UTF-8. A null value sets the default. False if the value was null.
bool assign(const Option& option, const Value& value, const std::string& where, Config& config);

void set_default(const Option& option, Config& config);
bool is_default(const Option& option, const Config& config);

/// What the option takes, for messages and documentation: "integer, at least 1", "one of no, steps, epoch".
std::string allowed(const Option& option);

/// true, yes, on, 1 and false, no, off, 0 in any case.
std::optional<bool> parse_bool(std::string_view text);

/// "5GB" → 5'000'000'000, as the hub's tools read sizes: a number, then nothing, B, KB … TB (powers of 1000) or
/// KiB … TiB (powers of 1024) in any case, perhaps after a space. Nothing for less than a byte.
std::optional<int64_t> parse_bytes(std::string_view text);

/// The candidate that differs least from `text` by typing mistakes; empty if all are far off.
std::string_view nearest(std::string_view text, const std::vector<std::string_view>& candidates);

}  // namespace fettle::config
