// SPDX-License-Identifier: Apache-2.0
/// manifest.sha256: what a folder's files were when it was made, so that a copy can be told from a damaged one.
///
/// Format: sha256sum(1)'s, "<64 hexadecimal digits>  <path below the folder>" a line, so `sha256sum -c manifest.sha256`
/// checks it where there is no Fettle.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fettle::hub {

inline constexpr const char* kChecksumFile = "manifest.sha256";

/// The files below a folder that a manifest lists: regular ones whose path has no part that begins with a dot, sorted,
/// without the manifest itself and what lies behind links to folders. Throws Error{kNoInput}, {kPermission} or {kIo}.
std::vector<std::filesystem::path> files_below(const std::filesystem::path& folder);

/// Hashes `files`, paths below `folder`, and writes the manifest. Throws Error{kIo} or {kPermission}; {kData} for a
/// name with a line break or a backslash, which the format would have to escape.
void write_checksums(const std::filesystem::path& folder, const std::vector<std::filesystem::path>& files);

struct ChecksumResult {
  int64_t files = 0;                            ///< that the manifest lists
  int64_t bytes = 0;                            ///< that were read
  std::vector<std::string> problems;            ///< "model.safetensors is missing", one a file
  std::vector<std::filesystem::path> unlisted;  ///< files below the folder that the manifest does not know
};

/// Compares the folder with its manifest. Throws Error{kNoInput} if there is none, {kData} if it is malformed or lists
/// nothing.
ChecksumResult compare_checksums(const std::filesystem::path& folder);

}  // namespace fettle::hub
