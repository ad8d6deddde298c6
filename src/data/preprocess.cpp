// SPDX-License-Identifier: Apache-2.0
#include "data/preprocess.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "data/dataset.h"
#include "data/files.h"
#include "data/preview.h"
#include "hub/model_folder.h"
#include "text/tokenizer.h"

namespace fettle::data {
namespace fs = std::filesystem;
namespace {

constexpr std::array<const char*, 3> kKeys = {"text", "input_ids", "labels"};

std::string json_line(const TokenDataset& dataset, const text::Tokenizer& tokenizer, int64_t index) {
  const auto ids = dataset.input_ids(index);
  const auto labels = dataset.labels(index);
  // Bytes that are no UTF-8 (a character cut in two by max_seq_length) are written as U+FFFD: JSON has no other way.
  const nlohmann::ordered_json line = {{kKeys[0], tokenizer.decode(ids, false)},
                                       {kKeys[1], std::vector<int32_t>(ids.begin(), ids.end())},
                                       {kKeys[2], std::vector<int32_t>(labels.begin(), labels.end())}};
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

/// Whether `path` is empty or begins with a line as write_documents writes them.
bool is_output(const fs::path& path) {
  const auto file = MappedFile::open(path);
  const std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  if (text.empty()) return true;
  const auto line = nlohmann::ordered_json::parse(text.substr(0, text.find('\n')), nullptr, false);
  if (!line.is_object() || line.size() != kKeys.size()) return false;
  return std::equal(line.items().begin(), line.items().end(), kKeys.begin(),
                    [](const auto& item, const char* key) { return item.key() == key; });
}

/// Refuses an output that would destroy something else, or that cannot be written, before any work is done.
void check_output(const fs::path& path, const config::Config& config) {
  const DataFiles files = find_files(config.data, Needed::kBoth, config.model.cache_dir);
  std::error_code failure;
  for (const auto& inputs : {files.train, files.validation}) {
    for (const fs::path& input : inputs) {
      if (!fs::equivalent(path, input, failure)) continue;
      throw Error(ExitCode::kUsage, fmt::format("output: {} is the input {}", path.string(), input.string()),
                  "name another file");
    }
  }
  if (fs::exists(path, failure) && (!fs::is_regular_file(path, failure) || !is_output(path))) {
    throw Error(ExitCode::kUsage,
                fmt::format("output: {} exists and is not a file of fettle preprocess", path.string()),
                "remove it, or name another file");
  }
  AtomicFile probe(path);  // leaves nothing behind
}

void write_documents(const TokenDataset& dataset, const text::Tokenizer& tokenizer, const std::string& path) {
  AtomicFile file(path);
  for (int64_t i = 0; i < dataset.size(); ++i) {
    file.write(json_line(dataset, tokenizer, i));
  }
  file.commit();
  log::info("{} documents written to {}", dataset.size(), path);
}

}  // namespace

int preprocess(const config::Config& config) {
  if (!config.preprocess.output.empty()) check_output(config.preprocess.output, config);
  const auto tokenizer = text::Tokenizer::load(hub::resolve_tokenizer(config.model));
  const TokenDataset train = prepare(config.data, tokenizer, true, config.model.cache_dir).train;
  if (::isatty(STDOUT_FILENO) != 0) {
    const int64_t shown = std::min(config.preprocess.preview_samples, train.size());
    for (int64_t i = 0; i < shown; ++i) fmt::print("{}\n", preview(train, tokenizer, i));
  }
  if (!config.preprocess.output.empty()) write_documents(train, tokenizer, config.preprocess.output);
  return static_cast<int>(ExitCode::kOk);
}

}  // namespace fettle::data
