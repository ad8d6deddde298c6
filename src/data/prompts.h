// SPDX-License-Identifier: Apache-2.0
/// A file of prompts to answer.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace fettle::data {

/// The column `prompt` of each record, or the lines of a .txt file. Throws Error as open_records; {kData} naming the
/// line of a record without a prompt, and for a file without records.
std::vector<std::string> read_prompts(const std::filesystem::path& file);

}  // namespace fettle::data
