// SPDX-License-Identifier: Apache-2.0
/// Single files on the web.
#pragma once

#include <filesystem>
#include <string>

namespace fettle::hub {

/// Whether a value is a URL (scheme://…) and no path.
bool is_url(const std::string& value);

/// The local copy of an https or http URL, in the hub cache under fettle-urls; downloaded once, and again where
/// `fettle download` finds that it has changed (ETag, or else Last-Modified, and size). `option` names the option in
/// messages. The hub's token is sent only to the hub's own origin. Throws Error: kUsage for another scheme (s3, hf …),
/// kPermission, kNoInput (404), kUnavailable, kIo.
std::filesystem::path fetch_url(const std::string& url, const std::string& cache_dir, const std::string& option);

}  // namespace fettle::hub
