// SPDX-License-Identifier: Apache-2.0
#include "hub/hub_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/utf8.h"
#include "base/watchdog.h"
#include "hub/lock_wait.h"
#include "hub/transfer.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

std::atomic<int> refresh_scopes{0};

bool has_blob(const CachedRepository& cached, const ListedFile& file) {
  std::error_code failure;
  const auto size = fs::file_size(cached.blob(file), failure);
  return !failure && static_cast<int64_t>(size) == file.size;
}

/// The snapshot if the cache has all that is needed.
std::optional<Snapshot> from_cache(const CachedRepository& cached, const SnapshotRequest& request) {
  const auto commit = cached.find_commit(request.repository.revision);
  if (!commit) return std::nullopt;
  if (auto listing = cached.find_listing(*commit)) {
    const Listing needed = request.select(*listing);
    if (!std::ranges::all_of(needed, [&](const ListedFile& file) { return cached.has(*commit, file); })) {
      return std::nullopt;
    }
    return Snapshot{cached.snapshot(*commit), *commit, std::move(*listing)};
  }
  Listing files = cached.list_snapshot(*commit);
  if (!request.is_complete(cached.snapshot(*commit), files)) return std::nullopt;
  return Snapshot{cached.snapshot(*commit), *commit, std::move(files), /*is_listed=*/false};
}

/// With HF_HUB_OFFLINE a snapshot that nobody has listed is taken too: what it lacks will be named by who needs it.
Snapshot without_network(const CachedRepository& cached, const SnapshotRequest& request) {
  if (auto snapshot = from_cache(cached, request)) return *snapshot;
  const Repository& repository = request.repository;
  const auto commit = cached.find_commit(repository.revision);
  if (commit && !cached.find_listing(*commit)) {
    return {cached.snapshot(*commit), *commit, cached.list_snapshot(*commit), /*is_listed=*/false};
  }
  const std::string state =
      commit
          ? fmt::format("is in the hub cache, but not all of its files: see {}", cached.snapshot(*commit).string())
          : fmt::format("is not in the hub cache: looked for {} and {}", cached.reference(repository.revision).string(),
                        cached.snapshot(repository.revision).string());
  throw Error(ExitCode::kNoInput,
              fmt::format("{}: {} is not a local folder or file, and revision {} {}", repository.option,
                          repository.name, repository.revision, state),
              "nothing is downloaded while HF_HUB_OFFLINE is set: unset it, or fill the cache with fettle download "
              "where there is a network");
}

/// How many files are on their way at once: a lock and what transfer needs for it, three descriptors each, of the 1024
/// that a process usually has.
constexpr size_t kFilesAtOnce = 64;

/// The blobs of these files, each with its lock held while it comes.
class BlobFetcher {
 public:
  BlobFetcher(const CachedRepository& cached, const SnapshotRequest& request, HubApi& api, std::string commit)
      : cached_(cached), request_(request), api_(api), commit_(std::move(commit)) {}

  void fetch(Listing missing) {
    std::set<std::string> seen;
    std::erase_if(missing, [&](const ListedFile& file) { return !seen.insert(file.digest).second; });
    std::vector<WantedFile> all;
    for (const ListedFile& file : missing) {
      if (!has_blob(cached_, file)) all.push_back(wanted(file));
    }
    require_room(all);
    wanted_ = all.size();
    while (!missing.empty()) missing = fetch_free(missing);
  }

 private:
  /// Downloads as many as may be at once of those that no other program does, and returns the rest. Locks are never
  /// waited for while others are held: two programs with the same files in another order would wait for each other.
  Listing fetch_free(const Listing& missing) {
    std::vector<std::unique_ptr<FileLock>> locks;
    std::vector<WantedFile> mine;
    Listing rest;
    for (const ListedFile& file : missing) {
      if (has_blob(cached_, file)) continue;
      if (mine.size() == kFilesAtOnce) {
        rest.push_back(file);
        continue;
      }
      auto lock = std::make_unique<FileLock>(cached_.blob_lock(file));
      if (!lock->try_lock()) {
        rest.push_back(file);
      } else if (!has_blob(cached_, file)) {
        locks.push_back(std::move(lock));
        mine.push_back(wanted(file));
      }
    }
    if (!mine.empty()) {
      transfer(mine, round_name(mine.size()), [this](const HttpResponse& response, const WantedFile& file) {
        return api_.refusal(response, file.name);
      });
    } else if (!rest.empty()) {
      FileLock lock(cached_.blob_lock(rest.front()));
      wait_for_lock(lock, fmt::format("downloads {} of {}", rest.front().path, request_.repository.name),
                    [&] { return has_blob(cached_, rest.front()); });
    }
    return rest;
  }

  /// The repository, and which of its files come now where that is not all.
  std::string round_name(size_t files) {
    const size_t before = std::exchange(fetched_, fetched_ + files);
    const std::string& name = request_.repository.name;
    return wanted_ <= kFilesAtOnce ? name : fmt::format("{} (files {}-{} of {})", name, before + 1, fetched_, wanted_);
  }

  [[nodiscard]] WantedFile wanted(const ListedFile& file) const {
    return {api_.file_url(commit_, file.path), api_.token(), cached_.blob(file), file.path, file.size, file.digest};
  }

  const CachedRepository& cached_;
  const SnapshotRequest& request_;
  HubApi& api_;
  std::string commit_;
  size_t wanted_ = 0;
  size_t fetched_ = 0;
};

Snapshot download(const CachedRepository& cached, const SnapshotRequest& request, HubApi& api,
                  const std::string& commit) {
  auto listing = cached.find_listing(commit);
  const bool is_new = !listing;
  if (is_new) listing = api.list(commit);
  const Listing needed = request.select(*listing);
  Listing missing;
  std::ranges::copy_if(needed, std::back_inserter(missing),
                       [&](const ListedFile& file) { return !cached.has(commit, file); });
  cached.make_folders(commit);
  if (is_new) cached.note_listing(commit, *listing);
  BlobFetcher(cached, request, api, commit).fetch(missing);
  for (const ListedFile& file : missing) cached.link(commit, file);
  // Last, so that a branch in the cache goes on to a new commit only when that is all there.
  cached.note_commit(request.repository.revision, commit);
  return {cached.snapshot(commit), commit, std::move(*listing)};
}

void take_lock(std::optional<FileLock>& lock, const CachedRepository& cached, const Repository& repository) {
  make_directories(cached.lock().parent_path());
  lock.emplace(cached.lock());
  wait_for_lock(*lock, fmt::format("downloads {}", repository.name), [] { return false; });
}

void check_name(const Repository& repository) {
  if (!is_hub_name(repository.name)) {
    throw Error(ExitCode::kNoInput,
                fmt::format("{}: {} is neither a folder{} nor a hub name", repository.option, quote(repository.name),
                            repository.kind == RepositoryKind::kModel ? ", a .gguf file" : ""),
                "check the path");
  }
  if (!is_plain_revision(repository.revision)) {
    const char* option = repository.kind == RepositoryKind::kModel ? "model_revision" : "dataset_revision";
    throw Error(ExitCode::kUsage,
                fmt::format("{}: {} is not a branch, tag or commit", option, quote(repository.revision)),
                "give its name as the hub shows it");
  }
}

}  // namespace

Snapshot fetch_snapshot(const SnapshotRequest& request) {
  const Repository& repository = request.repository;
  check_name(repository);
  const CachedRepository cached(cache_folder(request.cache_dir), repository.kind, repository.name);
  if (is_offline()) return without_network(cached, request);
  const bool is_refresh = RefreshScope::is_active() && !is_commit(repository.revision);
  if (!is_refresh) {
    if (auto snapshot = from_cache(cached, request)) return *snapshot;
  }
  const SectionMark mark(Section::kData, "downloading " + repository.name);  // takes as long as it takes
  std::optional<FileLock> lock;
  if (!is_refresh) {  // of many ranks one asks the hub, and the others find what it fetched
    take_lock(lock, cached, repository);
    if (auto snapshot = from_cache(cached, request)) return *snapshot;
  }
  HubApi api(hub_settings(), repository);
  std::string commit = repository.revision;
  if (!is_commit(commit)) {
    try {
      commit = api.find_commit();
    } catch (const Error& error) {
      if (error.code() != ExitCode::kUnavailable) throw;
      auto snapshot = from_cache(cached, request);
      if (!snapshot) {
        throw Error(error.code(),
                    fmt::format("{}: there is no {} here, and {}", repository.option, repository.name, error.what()),
                    error.hint());
      }
      log::warning("{}; {} is used as it is in the hub cache", error.what(), repository.name);
      return *snapshot;
    }
  }
  if (cached.find_commit(repository.revision) == commit) {  // nothing is written then: the cache may be read-only
    if (auto snapshot = from_cache(cached, request)) return *snapshot;
  }
  if (!lock) take_lock(lock, cached, repository);
  return download(cached, request, api, commit);
}

RefreshScope::RefreshScope() {
  ++refresh_scopes;
}

RefreshScope::~RefreshScope() {
  --refresh_scopes;
}

bool RefreshScope::is_active() {
  return refresh_scopes > 0;
}

}  // namespace fettle::hub
