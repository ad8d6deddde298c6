// SPDX-License-Identifier: Apache-2.0
/// The process's environment, and what it decides for all rooms.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

namespace fettle {

/// The value of a variable, or nullopt if it is not set.
using Environment = std::function<std::optional<std::string>(const char* name)>;

/// The process's own environment.
std::optional<std::string> process_environment(const char* name);

/// What Fettle keeps for later runs of the user: $XDG_CACHE_HOME/fettle, ~/.cache/fettle, or empty where there is no
/// home.
std::filesystem::path cache_folder();

}  // namespace fettle
