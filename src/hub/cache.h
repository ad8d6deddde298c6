// SPDX-License-Identifier: Apache-2.0
/// The hub cache in huggingface_hub's layout, shared with it both ways: blobs by digest, snapshots of links to them,
/// refs from branches to commits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace fettle::hub {

enum class RepositoryKind { kModel, kDataset };

/// A file of a repository at a commit.
struct ListedFile {
  std::string path;    ///< with '/' between folders
  int64_t size = -1;   ///< -1: not known
  std::string digest;  ///< SHA-256 of a large file, git's name of a small one: what its blob is called
};

using Listing = std::vector<ListedFile>;

/// $HF_HUB_CACHE, $HUGGINGFACE_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub or ~/.cache/huggingface/hub,
/// unless `cache_dir` is set.
std::filesystem::path cache_folder(const std::string& cache_dir);

/// $HF_HOME, $XDG_CACHE_HOME/huggingface or ~/.cache/huggingface.
std::filesystem::path hugging_face_home();

/// "name" or "org/name" with the characters that the hub allows; anything else can only be a path.
bool is_hub_name(const std::string& name);

/// What may be a blob's name: 64 hexadecimal digits (SHA-256) or 40 (git's).
bool is_digest(const std::string& text);

/// 40 hexadecimal digits.
bool is_commit(const std::string& revision);

/// What may stand below refs/: no path out of it.
bool is_plain_revision(const std::string& revision);

/// A path that stays inside the folder it is put into: relative, without "..", "." and control characters.
bool is_safe_path(const std::string& path);

/// One repository in the cache. Nothing is made on the disk but by the functions that say so. They throw Error{kIo} or
/// {kPermission}.
class CachedRepository {
 public:
  CachedRepository(const std::filesystem::path& cache, RepositoryKind kind, const std::string& name);

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  [[nodiscard]] std::filesystem::path blob(const ListedFile& file) const { return folder_ / "blobs" / file.digest; }
  [[nodiscard]] std::filesystem::path snapshot(const std::string& commit) const {
    return folder_ / "snapshots" / commit;
  }
  [[nodiscard]] std::filesystem::path reference(const std::string& revision) const {
    return folder_ / "refs" / revision;
  }
  /// The file that is locked while a blob is downloaded: huggingface_hub's own.
  [[nodiscard]] std::filesystem::path blob_lock(const ListedFile& file) const {
    return locks_ / (file.digest + ".lock");
  }
  /// The file that is locked while anything of the repository is.
  [[nodiscard]] std::filesystem::path lock() const { return locks_ / "fettle.lock"; }

  /// The commit of a branch or tag by its refs file; a commit is itself. Nothing if neither is in the cache.
  [[nodiscard]] std::optional<std::string> find_commit(const std::string& revision) const;

  /// What the repository holds at a commit, by what Fettle or huggingface_hub has noted; else nothing.
  [[nodiscard]] std::optional<Listing> find_listing(const std::string& commit) const;

  /// The files that a snapshot has, without digests.
  [[nodiscard]] Listing list_snapshot(const std::string& commit) const;

  /// Whether a snapshot has a file, with its size where that is known.
  [[nodiscard]] bool has(const std::string& commit, const ListedFile& file) const;

  /// Makes the folders for blobs, locks and a snapshot.
  void make_folders(const std::string& commit) const;
  void note_commit(const std::string& revision, const std::string& commit) const;
  void note_listing(const std::string& commit, const Listing& listing) const;
  /// Links a blob that is there into a snapshot.
  void link(const std::string& commit, const ListedFile& file) const;

 private:
  std::filesystem::path folder_;
  std::filesystem::path locks_;
};

}  // namespace fettle::hub
