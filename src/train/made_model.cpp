// SPDX-License-Identifier: Apache-2.0
#include "train/made_model.h"

#include <fmt/format.h>

#include <system_error>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "hub/checksums.h"
#include "hub/path.h"
#include "train/output_folder.h"
#include "train/probe.h"
#include "train/result.h"
#include "train/save.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

constexpr const char* kIdentity = "identity";
/// There from before the first file is changed until all are written.
constexpr const char* kUnfinished = ".unfinished";

[[noreturn]] void refuse_place(const fs::path& folder, std::string_view reason, const char* hint) {
  throw Error(ExitCode::kConfig, fmt::format("the folder {} {}", folder.string(), reason), hint);
}

}  // namespace

std::string description_fingerprint(const hub::ModelFolder& base, const text::Tokenizer& tokenizer) {
  return sha256(base.config.dump() + base.generation_config.dump() + tokenizer.fingerprint());
}

std::optional<nlohmann::ordered_json> results_of_model(const fs::path& folder) {
  if (hub::path_exists(folder / kUnfinished) || !hub::is_file(folder / kResultsFile)) return std::nullopt;
  auto results = nlohmann::ordered_json::parse(read_file(folder / kResultsFile), nullptr, /*allow_exceptions=*/false);
  if (!results.is_object() || !results.contains(kIdentity)) return std::nullopt;
  return results;
}

std::optional<nlohmann::ordered_json> made_earlier(const fs::path& folder, const std::string& identity) {
  std::optional<nlohmann::ordered_json> results = results_of_model(folder);
  if (!results || (*results)[kIdentity] != identity || !hub::is_file(folder / hub::kChecksumFile)) return std::nullopt;
  results->erase(kIdentity);
  try {
    if (!hub::compare_checksums(folder).problems.empty()) return std::nullopt;
  } catch (const Error&) {  // a manifest that is none
    return std::nullopt;
  }
  return results;
}

void require_place_for_model(const fs::path& folder, const std::vector<std::string>& read) {
  for (const std::string& input : read) {
    std::error_code failure;
    if (input.empty() || !fs::equivalent(input, folder, failure)) continue;
    refuse_place(folder, "is read by this command", "name another folder");
  }
  if (holds_run(folder) || hub::path_exists(folder / "adapter_config.json")) {
    refuse_place(folder, "holds a training run", "name another folder");
  }
}

void require_free(const fs::path& folder, bool overwrite) {
  if (overwrite || is_empty_folder(folder) || hub::path_exists(folder / kUnfinished)) return;
  refuse_place(folder, "is not empty", "name another folder, or set overwrite_output_dir to replace the model there");
}

void begin_model(const fs::path& folder) {
  make_directories(folder);
  write_file(folder / kUnfinished, "");
  // config.json goes first: without it nothing there is taken for a model.
  for (const char* name : {"config.json", hub::kChecksumFile, kResultsFile, kProbeFile}) fs::remove(folder / name);
  remove_stale_temporaries(folder);
}

void finish_model(const fs::path& folder, const MadeModel& model) {
  nlohmann::ordered_json results = model.results;
  results[kIdentity] = model.identity;
  write_file(folder / kResultsFile, results.dump(2) + '\n');
  write_model_files(folder, model.description, model.tokenizer, model.type);
  sync_directory(folder);
  write_manifest(folder);
  fs::remove(folder / kUnfinished);
}

}  // namespace fettle::train
