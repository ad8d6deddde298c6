// SPDX-License-Identifier: Apache-2.0
/// Repositories of the hub as folders on this machine: found in the hub cache, or downloaded into it.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "hub/cache.h"
#include "hub/hub_api.h"

namespace fettle::hub {

struct SnapshotRequest {
  Repository repository;
  std::string cache_dir;  ///< empty: by the environment
  /// Which of a repository's files are needed. May throw an Error that says why it is of no use.
  std::function<Listing(const Listing&)> select;
  /// Whether a snapshot is complete of which no listing is noted, as older tools leave them.
  std::function<bool(const std::filesystem::path& snapshot, const Listing& files)> is_complete;
};

struct Snapshot {
  std::filesystem::path folder;
  std::string commit;
  Listing files;  ///< all that the repository has, whether needed or not; without a listing, what the folder has
  bool is_listed = true;
};

/// What the cache has is taken as it is: where it has the needed files of the revision, the hub is not asked, so that
/// all ranks and later runs see the same commit. What is missing is downloaded, by one process of all that share the
/// cache; the others wait, and say so.
///
/// Inside a RefreshScope the hub is asked first what the revision is now; if it does not answer, a complete snapshot in
/// the cache is used with a warning.
///
/// Throws Error: as HubApi, transfer and `select`; kNoInput for what is not in the cache while HF_HUB_OFFLINE is set.
Snapshot fetch_snapshot(const SnapshotRequest& request);

/// `fettle download`: while one lives, revisions are asked for anew.
class RefreshScope {
 public:
  RefreshScope();
  ~RefreshScope();
  RefreshScope(const RefreshScope&) = delete;
  RefreshScope& operator=(const RefreshScope&) = delete;
  static bool is_active();
};

}  // namespace fettle::hub
