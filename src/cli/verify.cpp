// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <filesystem>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "hub/checksums.h"
#include "hub/path.h"

namespace fettle::cli {
namespace {

constexpr const char* kHelp =
    "fettle verify DIR           compare the files of DIR with its manifest.sha256\n"
    "fettle verify --write DIR   make manifest.sha256 of the files that are there\n\n"
    "fettle train writes one with its result. `cd DIR && sha256sum -c manifest.sha256` compares them too.\n";

std::filesystem::path only_folder(const Arguments& arguments, bool& writes) {
  std::optional<std::filesystem::path> folder;
  for (const std::string& argument : arguments) {
    if (argument == "--write") {
      writes = true;
    } else if (argument.starts_with("--")) {
      throw Error(ExitCode::kUsage, "fettle verify has no option " + argument, "see fettle verify --help");
    } else if (folder) {
      throw Error(ExitCode::kUsage, "fettle verify takes one folder", "see fettle verify --help");
    } else {
      folder = argument;
    }
  }
  if (!folder) throw Error(ExitCode::kUsage, "fettle verify needs a folder", "see fettle verify --help");
  if (!hub::is_folder(*folder))
    throw Error(ExitCode::kNoInput, folder->string() + " is not a folder", "check the path");
  return *folder;
}

}  // namespace

int verify(const Arguments& arguments) {
  if (asks_for_help(arguments)) {
    fmt::print("{}", kHelp);
    return 0;
  }
  bool writes = false;
  const std::filesystem::path folder = only_folder(arguments, writes);
  if (writes) {
    const auto files = hub::files_below(folder);
    hub::write_checksums(folder, files);
    fmt::print("wrote {} of {} files\n", (folder / hub::kChecksumFile).string(), files.size());
    return 0;
  }
  const hub::ChecksumResult result = hub::compare_checksums(folder);
  for (const std::string& problem : result.problems) log::warning("{}", problem);
  if (!result.unlisted.empty()) {
    log::info("{} files are not in the manifest, {} among them", result.unlisted.size(),
              result.unlisted.front().string());
  }
  if (!result.problems.empty()) {
    throw Error(ExitCode::kData,
                fmt::format("{}: {} of {} files are not what was written", folder.string(), result.problems.size(),
                            result.files),
                "copy them again");
  }
  fmt::print("{}: {} files, {} bytes, all as written\n", folder.string(), result.files, result.bytes);
  return 0;
}

}  // namespace fettle::cli
