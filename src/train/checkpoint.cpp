// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "hub/json.h"
#include "hub/path.h"
#include "train/tensor_file.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kPrefix = "checkpoint-";
constexpr std::string_view kUnfinished = ".unfinished";
constexpr std::string_view kReplaced = ".replaced";
constexpr const char* kManifest = "manifest.json";
constexpr const char* kHash = "blake3";
constexpr const char* kState = "trainer_state.json";

bool is_replaced(const fs::path& folder) {
  return folder.filename().string().ends_with(kReplaced);
}

/// The step in "checkpoint-<step>" or "checkpoint-<step>.replaced", nothing for any other name.
std::optional<int64_t> step_of(const fs::path& folder) {
  std::string name = folder.filename().string();
  if (!name.starts_with(kPrefix)) return std::nullopt;
  if (is_replaced(folder)) name.resize(name.size() - kReplaced.size());
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [rest, failure] = std::from_chars(name.data() + kPrefix.size(), end, step);
  return failure == std::errc() && rest == end ? std::optional(step) : std::nullopt;
}

std::string hash_file(const fs::path& path) {
  Blake3 hash;
  update_from_file(hash, path);
  return hash.finish();
}

/// `hashes`: those that are known; the other files are read back.
void write_step_manifest(const fs::path& folder, const std::map<std::string, std::string>& hashes) {
  nlohmann::json files = nlohmann::json::object();
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const auto known = hashes.find(name);
    files[name] = {{"bytes", entry.file_size()},
                   {kHash, known != hashes.end() ? known->second : hash_file(entry.path())}};
  }
  write_file(folder / kManifest, nlohmann::json{{"files", files}}.dump(2) + '\n');
}

/// Removes a folder; what cannot be removed is a warning, not the end of a run.
void remove_folder(const fs::path& folder) {
  std::error_code failure;
  fs::remove_all(folder, failure);
  if (failure) log::warning("cannot remove {}: {}", folder.string(), failure.message());
}

enum class Compare { kSizes, kHashes };

/// See why_broken; throws nlohmann's exceptions for a manifest of the wrong form.
std::string compare_with_manifest(const fs::path& folder, Compare what) {
  if (!fs::is_regular_file(folder / kManifest)) return fmt::format("{} is missing", kManifest);
  const nlohmann::json files = hub::parse_json_object(read_file(folder / kManifest), kManifest).at("files");
  for (const char* name : {kOptimizerFile, kState}) {
    if (!files.contains(name)) return fmt::format("{} does not list {}", kManifest, name);
  }
  for (const fs::path& file : hub::list_folder(folder)) {
    const std::string name = file.filename().string();
    if (name != kManifest && !name.starts_with('.') && !files.contains(name))
      return fmt::format("{} does not list {}", kManifest, name);
  }
  for (const auto& [name, entry] : files.items()) {
    if (name.empty() || fs::path(name).filename() != name) return fmt::format("{} lists '{}'", kManifest, name);
    if (!fs::is_regular_file(folder / name)) return fmt::format("{} is missing", name);
    if (entry.at("bytes") != fs::file_size(folder / name)) return fmt::format("{} has another size", name);
    if (what == Compare::kHashes && entry.at(kHash) != hash_file(folder / name))
      return fmt::format("{} has another hash", name);
  }
  return {};
}

std::string how_it_differs(const fs::path& folder, Compare what) {
  try {
    return compare_with_manifest(folder, what);
  } catch (const nlohmann::json::exception&) {
    return fmt::format("{} is not a manifest", kManifest);
  } catch (const fs::filesystem_error& error) {
    throw_system_error("read", error.path1(), error.code().value());
  } catch (const Error& error) {
    if (leaves_open(error)) throw;
    return error.what();
  }
}

void write_files(const fs::path& folder, const nlohmann::json& state, const WriteTensors& write_tensors,
                 const AddFiles& add_files) {
  const std::map<std::string, std::string> hashes = write_tensors(folder);
  write_file(folder / kState, state.dump(2) + '\n');
  if (add_files) add_files(folder);
  write_step_manifest(folder, hashes);
  sync_directory(folder);
}

/// Renames `unfinished` to `folder` and returns where the one that was there is now, if one was. It is exchanged, so
/// that at every moment a whole one has the name; on a file system that cannot exchange (NFS) it is set aside first.
fs::path put_in_place(const fs::path& unfinished, const fs::path& folder) {
  if (::renameat2(AT_FDCWD, unfinished.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) == 0) return unfinished;
  const fs::path aside = folder.string() + std::string(kReplaced);
  if (hub::path_exists(folder)) {
    remove_folder(aside);
    if (::rename(folder.c_str(), aside.c_str()) != 0) throw_system_error("rename to", aside, errno);
  }
  if (::rename(unfinished.c_str(), folder.c_str()) == 0) return aside;
  const int failure = errno;
  ::rename(aside.c_str(), folder.c_str());
  throw_system_error("rename to", folder, failure);
}

}  // namespace

fs::path write_checkpoint(const fs::path& output_dir, int64_t step, const Snapshot& snapshot,
                          const AddFiles& add_files) {
  const auto write_tensors = [&snapshot](const fs::path& folder) {
    return std::map<std::string, std::string>{
        {snapshot.weights_file, write_finite(folder / snapshot.weights_file, snapshot.weights, {{"format", "pt"}})},
        {kOptimizerFile, write_finite(folder / kOptimizerFile, snapshot.optimizer, {})}};
  };
  return write_checkpoint(output_dir, step, snapshot.state, write_tensors, add_files);
}

fs::path write_checkpoint(const fs::path& output_dir, int64_t step, const nlohmann::json& state,
                          const WriteTensors& write_tensors, const AddFiles& add_files) {
  const fs::path folder = output_dir / fmt::format("{}{}", kPrefix, step);
  const fs::path unfinished = folder.string() + std::string(kUnfinished);
  remove_folder(unfinished);
  make_directories(unfinished);
  fs::path old;
  try {
    write_files(unfinished, state, write_tensors, add_files);
    old = put_in_place(unfinished, folder);
  } catch (...) {
    remove_folder(unfinished);
    throw;
  }
  sync_directory(output_dir);
  remove_folder(old);
  return folder;
}

void restore_checkpoint(const fs::path& folder, const Snapshot& snapshot) {
  read_tensors(folder / snapshot.weights_file, snapshot.weights);
  read_tensors(folder / kOptimizerFile, snapshot.optimizer);
}

nlohmann::json read_checkpoint_state(const fs::path& folder) {
  return hub::parse_json_object(read_file(folder / kState), (folder / kState).string());
}

bool leaves_open(const Error& error) {
  return error.code() == ExitCode::kIo || error.code() == ExitCode::kPermission ||
         error.code() == ExitCode::kOutOfMemory;
}

std::string why_broken(const fs::path& folder) {
  return how_it_differs(folder, Compare::kHashes);
}

std::optional<int64_t> checkpoint_step(const fs::path& folder) {
  return step_of(folder);
}

std::vector<fs::path> list_checkpoints(const fs::path& output_dir) {
  std::map<int64_t, fs::path> by_step;
  if (!hub::path_exists(output_dir)) return {};
  for (const fs::path& entry : hub::list_folder(output_dir)) {
    const auto step = step_of(entry);
    if (!step || !hub::is_folder(entry)) continue;
    const auto [place, is_new] = by_step.try_emplace(*step, entry);
    if (!is_new && is_replaced(place->second)) place->second = entry;
  }
  std::vector<fs::path> folders;
  for (const auto& [step, folder] : by_step) folders.push_back(folder);
  return folders;
}

void remove_checkpoints_after(const fs::path& output_dir, int64_t step) {
  for (const fs::path& folder : list_checkpoints(output_dir)) {
    if (step_of(folder) <= step) continue;
    log::warning("removing {}: this run continues at step {}", folder.string(), step);
    remove_folder(folder);
  }
}

void prune_checkpoints(const fs::path& output_dir, int64_t keep) {
  for (const fs::directory_entry& entry : fs::directory_iterator(output_dir)) {
    const std::string name = entry.path().filename().string();
    const bool is_left = name.ends_with(kUnfinished) ||
                         (is_replaced(name) && hub::path_exists(entry.path().parent_path() / entry.path().stem()));
    if (name.starts_with(kPrefix) && is_left) remove_folder(entry.path());
  }
  if (keep <= 0) return;
  std::vector<fs::path> folders = list_checkpoints(output_dir);
  std::ranges::reverse(folders);
  int64_t kept = 0;
  for (const fs::path& folder : folders) {
    try {
      const std::string reason = kept < keep ? how_it_differs(folder, Compare::kSizes) : "";
      if (!reason.empty()) log::warning("removing {}, which is broken: {}", folder.string(), reason);
      if (kept == keep || !reason.empty()) {
        remove_folder(folder);
      } else {
        ++kept;
      }
    } catch (const Error& error) {  // it may be whole, and the run goes on
      log::warning("{} stays: {}", folder.string(), error.what());
    }
  }
}

}  // namespace fettle::train
