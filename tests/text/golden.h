// SPDX-License-Identifier: Apache-2.0
/// Golden files and test folders of the text room's tests.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.h"
#include "support/temporary_folder.h"

namespace fettle::text::golden {

inline std::filesystem::path root() {
  return FETTLE_SOURCE_DIR;
}

inline nlohmann::ordered_json read(const std::string& name) {
  return nlohmann::ordered_json::parse(read_file(root() / "tests/golden/text" / name));
}

inline std::filesystem::path tokenizer_folder(const std::string& name) {
  return name == "stories260K" ? root() / "examples/stories260K" : root() / "tests/data/tokenizers" / name;
}

/// Why the tokenizer of that name cannot be used here; empty if it can.
inline std::string missing(const std::string& name) {
  const auto file = tokenizer_folder(name) / "tokenizer.json";
  return std::filesystem::exists(file) ? "" : file.string() + " is not unpacked (see tests/data/README.md)";
}

}  // namespace fettle::text::golden
