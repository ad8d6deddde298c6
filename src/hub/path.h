// SPDX-License-Identifier: Apache-2.0
/// Looking at paths that a user gave. std::filesystem's own functions throw filesystem_error where a folder may not be
/// entered or a name is too long; these throw the Error of throw_system_error.
#pragma once

#include <filesystem>
#include <vector>

namespace fettle::hub {

bool path_exists(const std::filesystem::path& path);
bool is_folder(const std::filesystem::path& path);
bool is_file(const std::filesystem::path& path);

/// The entries of a folder, sorted.
std::vector<std::filesystem::path> list_folder(const std::filesystem::path& folder);

}  // namespace fettle::hub
