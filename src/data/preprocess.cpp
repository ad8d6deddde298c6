// SPDX-License-Identifier: Apache-2.0
#include "data/preprocess.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "data/dataset.h"
#include "data/preview.h"
#include "hub/model_folder.h"
#include "text/tokenizer.h"

namespace fettle::data {
namespace {

std::string json_line(const TokenDataset& dataset, const text::Tokenizer& tokenizer, int64_t index) {
  const auto ids = dataset.input_ids(index);
  const auto labels = dataset.labels(index);
  // Bytes that are no UTF-8 (a character cut in two by max_seq_length) are written as U+FFFD: JSON has no other way.
  const nlohmann::ordered_json line = {{"text", tokenizer.decode(ids, false)},
                                       {"input_ids", std::vector<int32_t>(ids.begin(), ids.end())},
                                       {"labels", std::vector<int32_t>(labels.begin(), labels.end())}};
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void write_documents(const TokenDataset& dataset, const text::Tokenizer& tokenizer, const std::string& path) {
  AtomicFile file(path);
  for (int64_t i = 0; i < dataset.size(); ++i) {
    file.write(json_line(dataset, tokenizer, i));
  }
  file.commit();
  log::info("{} documents written to {}", dataset.size(), path);
}

/// tokenizer_name alone is enough: no model is needed to make tokens.
text::Tokenizer load_tokenizer(const config::ModelConfig& model) {
  if (!model.tokenizer_name.empty()) {
    return text::Tokenizer::load(hub::resolve_folder(model.tokenizer_name, model, "tokenizer_name"));
  }
  return text::Tokenizer::load(hub::resolve_model(model).tokenizer_folder);
}

}  // namespace

int preprocess(const config::Config& config) {
  const auto tokenizer = load_tokenizer(config.model);
  const TokenDataset train = prepare(config.data, tokenizer, true).train;
  if (::isatty(STDOUT_FILENO) != 0) {
    const int64_t shown = std::min(config.preprocess.preview_samples, train.size());
    for (int64_t i = 0; i < shown; ++i) fmt::print("{}\n", preview(train, tokenizer, i));
  }
  if (!config.preprocess.output.empty()) write_documents(train, tokenizer, config.preprocess.output);
  return static_cast<int>(ExitCode::kOk);
}

}  // namespace fettle::data
