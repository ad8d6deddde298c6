// SPDX-License-Identifier: Apache-2.0
/// Files over the network, several at once and several connections to each.
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "hub/http.h"

namespace fettle::hub {

struct WantedFile {
  std::string url;
  std::string token;             ///< for the URL's origin; empty: none
  std::filesystem::path target;  ///< absent; its folder exists
  std::string name;              ///< for messages
  int64_t size = 0;
  std::string
      digest;  ///< as PartialFile::has_digest takes it; empty: size and ETag alone tell one version from another
  std::string etag = {};  ///< of the version that is wanted, where the digest is empty; empty: not looked at
};

/// Thrown by `transfer` where a file without a digest is no longer the one that is wanted; nothing of it is kept.
class FileChanged : public std::exception {};

/// What an answer means that is neither a success nor worth another attempt.
using Refusal = std::function<Error(const HttpResponse& response, const WantedFile& file)>;

/// Throws Error{kIo} if the disk lacks room for what is missing of the files, on any of the file systems.
void require_room(const std::vector<WantedFile>& files);

/// Fetches the files by at most eight connections, and continues what an earlier process began. A file is at its target
/// only when its size and digest are right. `what` names the whole in the progress on standard error. Throws
/// Error{kIo} before it begins if the disk has no room, {kUnavailable} where the network or the server fails in every
/// attempt or gives other bytes twice, what `refusal` makes, FileChanged, and {kPreempted} after a stop signal.
///
/// Each file takes two descriptors until it is there: fetch hundreds in rounds, after require_room for all.
///
/// Wrong bytes are kUnavailable and not kData: nothing of the user's is wrong, a proxy or a mirror spoilt them on the
/// way, and the same command may succeed later.
void transfer(const std::vector<WantedFile>& files, const std::string& what, const Refusal& refusal);

}  // namespace fettle::hub
