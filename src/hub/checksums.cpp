// SPDX-License-Identifier: Apache-2.0
#include "hub/checksums.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <span>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/utf8.h"
#include "hub/path.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

constexpr size_t kDigits = 64;
constexpr std::string_view kBetween = "  ";

std::string hash_file(const fs::path& path) {
  Sha256 hash;
  update_from_file(hash, path);
  return hash.finish();
}

bool is_hash(std::string_view text) {
  return text.size() == kDigits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

/// A path that stays below the folder.
bool is_inside(const fs::path& path) {
  return !path.empty() && path.is_relative() && std::ranges::find(path, fs::path("..")) == path.end();
}

std::map<fs::path, std::string> read_checksums(const fs::path& folder) {
  const fs::path manifest = folder / kChecksumFile;
  if (!path_exists(manifest)) {
    throw Error(ExitCode::kNoInput, fmt::format("{} has no {}", folder.string(), kChecksumFile),
                "make one where the files are known to be good: fettle verify --write " + folder.string());
  }
  const std::string content = read_file(manifest);
  std::map<fs::path, std::string> found;
  size_t number = 0;
  for (size_t begin = 0; begin < content.size(); ++number) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    const bool has_form = line.size() > kDigits + 2 && is_hash(line.substr(0, kDigits)) &&
                          (line.substr(kDigits, 2) == kBetween || line.substr(kDigits, 2) == " *");
    const fs::path path = has_form ? fs::path(line.substr(kDigits + 2)).lexically_normal() : fs::path();
    if (!is_inside(path)) {
      throw Error(ExitCode::kData,
                  fmt::format("{} line {}: {} is not a hash and a path below the folder", manifest.string(), number + 1,
                              quote(std::string(line))),
                  "copy the file again; it is as sha256sum(1) writes it");
    }
    found[path] = line.substr(0, kDigits);
  }
  if (found.empty()) {
    throw Error(ExitCode::kData, manifest.string() + " lists no file", "copy it again");
  }
  return found;
}

}  // namespace

std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  std::vector<fs::path> folders = {fs::path()};
  while (!folders.empty()) {
    const fs::path inner = folders.back();
    folders.pop_back();
    for (const fs::path& entry : list_folder(folder / inner)) {
      const fs::path name = inner / entry.filename();
      if (entry.filename().string().starts_with('.') || name == kChecksumFile) continue;
      if (is_folder(entry)) {
        if (!fs::is_symlink(entry)) folders.push_back(name);  // it may lead anywhere, and back
      } else if (is_file(entry)) {
        files.push_back(name);
      }
    }
  }
  std::ranges::sort(files);
  return files;
}

void write_checksums(const fs::path& folder, const std::vector<fs::path>& files) {
  std::string content;
  for (const fs::path& file : files) {
    const std::string name = file.string();
    if (name.find_first_of("\n\r\\") != std::string::npos) {
      throw Error(ExitCode::kData, fmt::format("{}: no manifest can hold this name", quote(name)), "rename the file");
    }
    content += fmt::format("{}{}{}\n", hash_file(folder / file), kBetween, name);
  }
  write_file(folder / kChecksumFile, content);
}

ChecksumResult compare_checksums(const fs::path& folder) {
  const std::map<fs::path, std::string> expected = read_checksums(folder);
  ChecksumResult result;
  for (const auto& [path, hash] : expected) {
    ++result.files;
    if (!path_exists(folder / path)) {
      result.problems.push_back(path.string() + " is missing");
      continue;
    }
    if (hash_file(folder / path) != hash) result.problems.push_back(path.string() + " differs from what was written");
    result.bytes += static_cast<int64_t>(fs::file_size(folder / path));
  }
  for (const fs::path& file : files_below(folder)) {
    if (!expected.contains(file)) result.unlisted.push_back(file);
  }
  return result;
}

}  // namespace fettle::hub
