// SPDX-License-Identifier: Apache-2.0
/// What the data room's tests share: a temporary folder, the repository's tokenizers, short configurations.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "config/config.h"
#include "data/dataset.h"
#include "support/temporary_folder.h"
#include "text/tokenizer.h"

namespace fettle::data {

inline std::filesystem::path repository(std::string_view path) {
  return std::filesystem::path(FETTLE_SOURCE_DIR) / path;
}

/// The smallest real tokenizer (Llama 2 style, 512 tokens, no chat template).
inline const text::Tokenizer& small_tokenizer() {
  static const auto tokenizer = text::Tokenizer::load(repository("examples/stories260K"));
  return tokenizer;
}

inline const text::Tokenizer& chat_tokenizer() {
  static const auto tokenizer = text::Tokenizer::load(repository("tests/data/tokenizers/smollm2"));
  return tokenizer;
}

/// Reads `file` and keeps its cache in `folder`.
inline config::DataConfig config_for(const std::string& file, const TemporaryFolder& folder) {
  config::DataConfig config;
  config.train_file = {file};
  config.dataset_cache_directory = (folder.path() / "cache").string();
  config.preprocessing_num_workers = 2;
  return config;
}

inline Example example_of(const TokenDataset& dataset, int64_t index) {
  const auto ids = dataset.input_ids(index);
  const auto labels = dataset.labels(index);
  return {{ids.begin(), ids.end()}, {labels.begin(), labels.end()}};
}

/// The text of the targets, and of nothing else.
inline std::string target_text(const Example& example, const text::Tokenizer& tokenizer) {
  std::vector<int32_t> targets;
  for (const int32_t label : example.labels) {
    if (label != kIgnore) targets.push_back(label);
  }
  return tokenizer.decode(targets, false);
}

}  // namespace fettle::data
