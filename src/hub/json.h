// SPDX-License-Identifier: Apache-2.0
/// JSON of foreign files, read with bounds.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace fettle::hub {

/// What to do about a foreign file with wrong content, where nothing better is known.
inline constexpr const char* kWrongContentHint =
    "the file is damaged, incomplete, or was edited with a mistake: download, convert or save it again";

/// Parses one JSON object. Refuses anything else, invalid UTF-8, duplicate keys, and nesting deeper than 64.
/// Throws Error{kData} with `name` (the file) in the message.
nlohmann::json parse_json_object(std::string_view text, std::string_view name);

/// Reads and parses a JSON file of at most 64 MB. Throws as MappedFile::open and parse_json_object.
nlohmann::json read_json_object(const std::filesystem::path& path);

}  // namespace fettle::hub
