// SPDX-License-Identifier: Apache-2.0
#include "hub/cache.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "hub/environment.h"
#include "hub/path.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

/// huggingface_hub's note of a tree: {"files": {path: {size, blob_id, lfs_sha256 …}}} or the map alone; its format is
/// not documented, so whatever does not look like it is no note.
std::optional<Listing> read_tree(const nlohmann::json& tree) {
  const nlohmann::json& files = tree.is_object() && tree.contains("files") ? tree["files"] : tree;
  if (!files.is_object()) return std::nullopt;
  Listing listing;
  for (const auto& item : files.items()) {
    const nlohmann::json& entry = item.value();
    if (!entry.is_object() || !entry.contains("size") || !entry["size"].is_number_integer()) return std::nullopt;
    const auto text = [&entry](const char* key) {
      return entry.contains(key) && entry[key].is_string() ? entry[key].get<std::string>() : std::string();
    };
    const std::string large = text("lfs_sha256");
    listing.push_back({item.key(), entry["size"].get<int64_t>(), large.empty() ? text("blob_id") : large});
  }
  return listing;
}

std::optional<Listing> read_own(const nlohmann::json& notes) {
  if (!notes.is_array()) return std::nullopt;
  Listing listing;
  for (const nlohmann::json& entry : notes) {
    if (!entry.is_array() || entry.size() != 3 || !entry[0].is_string() || !entry[1].is_number_integer() ||
        !entry[2].is_string()) {
      return std::nullopt;
    }
    listing.push_back({entry[0].get<std::string>(), entry[1].get<int64_t>(), entry[2].get<std::string>()});
  }
  return listing;
}

/// A note that is no JSON or names unsafe files is none: it can be fetched again.
template <typename Read>
std::optional<Listing> read_note(const fs::path& file, const Read& read) {
  if (!is_file(file)) return std::nullopt;
  auto listing = read(nlohmann::json::parse(read_file(file), nullptr, /*allow_exceptions=*/false));
  if (!listing) return std::nullopt;
  const bool is_safe = std::ranges::all_of(
      *listing, [](const ListedFile& file) { return is_safe_path(file.path) && is_digest(file.digest); });
  return is_safe ? listing : std::nullopt;
}

}  // namespace

fs::path hugging_face_home() {
  if (const std::string home = environment("HF_HOME"); !home.empty()) return home;
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty()) return fs::path(cache) / "huggingface";
  return fs::path(environment("HOME")) / ".cache" / "huggingface";
}

fs::path cache_folder(const std::string& cache_dir) {
  if (!cache_dir.empty()) return cache_dir;
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (const std::string value = environment(name); !value.empty()) return value;
  }
  return hugging_face_home() / "hub";
}

bool is_hub_name(const std::string& name) {
  const bool characters = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '/';
  });
  return !name.empty() && name.size() <= 200 && characters && name.find("..") == std::string::npos &&
         name.find("--") == std::string::npos && name.front() != '/' && name.front() != '.' && name.back() != '/' &&
         std::count(name.begin(), name.end(), '/') <= 1;
}

bool is_digest(const std::string& text) {
  return (text.size() == 40 || text.size() == 64) && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool is_commit(const std::string& revision) {
  return revision.size() == 40 && is_digest(revision);
}

bool is_plain_revision(const std::string& revision) {
  return !revision.empty() && revision.front() != '/' && revision.find("..") == std::string::npos;
}

bool is_safe_path(const std::string& path) {
  if (path.empty() || path.front() == '/' || path.back() == '/') return false;
  if (std::ranges::any_of(path, [](unsigned char c) { return c < 32 || c == 127 || c == '\\'; })) return false;
  const fs::path parsed(path);
  return path.find("//") == std::string::npos &&
         std::none_of(parsed.begin(), parsed.end(), [](const fs::path& part) { return part == "." || part == ".."; });
}

CachedRepository::CachedRepository(const fs::path& cache, RepositoryKind kind, const std::string& name) {
  std::string folder = (kind == RepositoryKind::kModel ? "models--" : "datasets--") + name;
  if (const size_t slash = folder.find('/'); slash != std::string::npos) folder.replace(slash, 1, "--");
  folder_ = cache / folder;
  locks_ = cache / ".locks" / folder;
}

std::optional<std::string> CachedRepository::find_commit(const std::string& revision) const {
  if (!is_plain_revision(revision)) return std::nullopt;
  const std::string commit = is_file(reference(revision)) ? trim(read_file(reference(revision))) : revision;
  if (!is_plain_revision(commit)) return std::nullopt;
  return is_folder(snapshot(commit)) ? std::optional(commit) : std::nullopt;
}

std::optional<Listing> CachedRepository::find_listing(const std::string& commit) const {
  if (auto own = read_note(folder_ / "fettle" / (commit + ".json"), read_own)) return own;
  return read_note(folder_ / "trees" / (commit + ".json"), read_tree);
}

Listing CachedRepository::list_snapshot(const std::string& commit) const {
  Listing listing;
  const fs::path root = snapshot(commit);
  std::error_code failure;
  for (fs::recursive_directory_iterator next(root, failure), end; !failure && next != end; next.increment(failure)) {
    if (!is_file(next->path())) continue;
    listing.push_back({next->path().lexically_relative(root).generic_string(), -1, {}});
  }
  if (failure) throw_system_error("list folder", root, failure.value());
  std::ranges::sort(listing, {}, &ListedFile::path);
  return listing;
}

bool CachedRepository::has(const std::string& commit, const ListedFile& file) const {
  std::error_code failure;
  const auto size = fs::file_size(snapshot(commit) / file.path, failure);
  return !failure && (file.size < 0 || static_cast<int64_t>(size) == file.size);
}

void CachedRepository::make_folders(const std::string& commit) const {
  for (const fs::path& folder : {folder_ / "blobs", locks_, snapshot(commit)}) make_directories(folder);
}

void CachedRepository::note_commit(const std::string& revision, const std::string& commit) const {
  if (revision == commit) return;
  const fs::path file = reference(revision);
  if (is_file(file) && read_file(file) == commit) return;
  make_directories(file.parent_path());
  write_file(file, commit);
}

void CachedRepository::note_listing(const std::string& commit, const Listing& listing) const {
  nlohmann::json notes = nlohmann::json::array();
  for (const ListedFile& file : listing) notes.push_back({file.path, file.size, file.digest});
  // Beside huggingface_hub's folders and not in its trees/: where that has a listing, its snapshot_download takes a
  // snapshot for broken that leaves files out.
  make_directories(folder_ / "fettle");
  write_file(folder_ / "fettle" / (commit + ".json"), notes.dump() + "\n");
}

void CachedRepository::link(const std::string& commit, const ListedFile& file) const {
  const fs::path place = snapshot(commit) / file.path;
  make_directories(place.parent_path());
  const fs::path target = blob(file).lexically_relative(place.parent_path());
  const fs::path temporary = place.parent_path() / fmt::format(".fettle-{}-{}.tmp", ::getpid(), file.digest);
  ::unlink(temporary.c_str());
  if (::symlink(target.c_str(), temporary.c_str()) == 0) {
    if (::rename(temporary.c_str(), place.c_str()) != 0) throw_system_error("write", place, errno);
    return;
  }
  // A volume without links (SMB, FAT): the file itself goes there, as huggingface_hub does it.
  if (errno != EPERM && errno != ENOTSUP && errno != ENOSYS) throw_system_error("write", place, errno);
  if (::rename(blob(file).c_str(), place.c_str()) != 0) throw_system_error("write", place, errno);
}

}  // namespace fettle::hub
