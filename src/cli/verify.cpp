// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "config/config.h"
#include "hub/checksums.h"
#include "hub/path.h"
#include "train/inputs.h"
#include "train/verify.h"

namespace fettle::cli {
namespace {

constexpr const char* kHelp =
    "fettle verify DIR           check the files of DIR: hashes in manifest.sha256, and of a model or an adapter "
    "names,\n"
    "                            shapes, values, and its logits as they are in probe.safetensors\n"
    "fettle verify --write DIR   make probe.safetensors and manifest.sha256 of the files that are there\n\n"
    "  --model_name_or_path=…    the base of an adapter, if not where adapter_config.json says\n\n"
    "fettle train writes a manifest with its result, fettle merge a probe too. `cd DIR && sha256sum -c "
    "manifest.sha256`\n"
    "compares the files where there is no Fettle.\n";

struct Request {
  std::filesystem::path folder;
  std::string base;
  bool writes = false;
};

Request read_request(const Arguments& arguments) {
  constexpr std::string_view kBase = "--model_name_or_path=";
  Request request;
  for (const std::string& argument : arguments) {
    if (argument == "--write") {
      request.writes = true;
    } else if (argument.starts_with(kBase)) {
      request.base = argument.substr(kBase.size());
    } else if (argument.starts_with("--")) {
      throw Error(ExitCode::kUsage, "fettle verify has no option " + argument, "see fettle verify --help");
    } else if (!request.folder.empty()) {
      throw Error(ExitCode::kUsage, "fettle verify takes one folder", "see fettle verify --help");
    } else {
      request.folder = argument;
    }
  }
  if (request.folder.empty()) {
    throw Error(ExitCode::kUsage, "fettle verify needs a folder", "see fettle verify --help");
  }
  if (!hub::is_folder(request.folder)) {
    throw Error(ExitCode::kNoInput, request.folder.string() + " is not a folder", "check the path");
  }
  return request;
}

void compare_hashes(const std::filesystem::path& folder) {
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
}

}  // namespace

int verify(const Arguments& arguments) {
  if (asks_for_help(arguments)) {
    fmt::print("{}", kHelp);
    return 0;
  }
  const Request request = read_request(arguments);
  config::DeviceConfig device;
  device.device = "cpu";  // the same arithmetic wherever the copy is
  if (request.writes) {
    train::start_device(device);
    train::add_probe(request.folder, request.base, [](const std::string& line) { fmt::print("{}\n", line); });
    const auto files = hub::files_below(request.folder);
    hub::write_checksums(request.folder, files);
    fmt::print("wrote {} of {} files\n", (request.folder / hub::kChecksumFile).string(), files.size());
    return 0;
  }
  compare_hashes(request.folder);
  train::start_device(device);
  train::verify_result(request.folder, request.base,
                       [&request](const std::string& line) { fmt::print("{}: {}\n", request.folder.string(), line); });
  return 0;
}

}  // namespace fettle::cli
