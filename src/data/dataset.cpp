// SPDX-License-Identifier: Apache-2.0
#include "data/dataset.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/hash.h"
#include "data/storage.h"

namespace fettle::data {
namespace {

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

}  // namespace

TokenDataset::TokenDataset(std::shared_ptr<const Storage> storage) : storage_(std::move(storage)) {}

TokenDataset TokenDataset::from_examples(const std::vector<Example>& examples) {
  StorageBuilder builder;
  Sha256 hash;
  for (size_t i = 0; i < examples.size(); ++i) {
    builder.add(examples[i], static_cast<int64_t>(i));
    hash.update(fmt::format("{} ", examples[i].input_ids.size()));
    hash.update(bytes_of(examples[i].input_ids));
    hash.update(bytes_of(examples[i].labels));
  }
  builder.preparation().records = static_cast<int64_t>(examples.size());
  return TokenDataset(builder.finish(hash.finish()));
}

int64_t TokenDataset::size() const {
  return static_cast<int64_t>(storage_->records.size());
}

int64_t TokenDataset::length(int64_t index) const {
  const auto i = static_cast<size_t>(index);
  return storage_->offsets[i + 1] - storage_->offsets[i];
}

int64_t TokenDataset::targets(int64_t index) const {
  return count_targets(labels(index));
}

std::span<const int32_t> TokenDataset::input_ids(int64_t index) const {
  return storage_->ids.subspan(static_cast<size_t>(storage_->offsets[static_cast<size_t>(index)]),
                               static_cast<size_t>(length(index)));
}

std::span<const int32_t> TokenDataset::labels(int64_t index) const {
  return storage_->labels.subspan(static_cast<size_t>(storage_->offsets[static_cast<size_t>(index)]),
                                  static_cast<size_t>(length(index)));
}

int64_t TokenDataset::record(int64_t index) const {
  return storage_->records[static_cast<size_t>(index)];
}
int64_t TokenDataset::tokens() const {
  return storage_->preparation.tokens;
}
int64_t TokenDataset::target_tokens() const {
  return storage_->preparation.target_tokens;
}
const std::string& TokenDataset::fingerprint() const {
  return storage_->fingerprint;
}
const Preparation& TokenDataset::preparation() const {
  return storage_->preparation;
}

int64_t count_targets(std::span<const int32_t> labels) {
  if (labels.empty()) return 0;
  return std::count_if(labels.begin() + 1, labels.end(), [](int32_t label) { return label != kIgnore; });
}

StorageBuilder::StorageBuilder() : storage_(std::make_shared<TokenDataset::Storage>()) {
  storage_->owned_offsets.push_back(0);
}

void StorageBuilder::add(const Example& example, int64_t record) {
  if (example.input_ids.size() != example.labels.size() || example.input_ids.empty()) {
    throw Error(ExitCode::kInternal,
                fmt::format("a document has {} tokens and {} labels", example.input_ids.size(), example.labels.size()));
  }
  TokenDataset::Storage& storage = *storage_;
  storage.owned_ids.insert(storage.owned_ids.end(), example.input_ids.begin(), example.input_ids.end());
  storage.owned_labels.insert(storage.owned_labels.end(), example.labels.begin(), example.labels.end());
  storage.owned_offsets.push_back(static_cast<int64_t>(storage.owned_ids.size()));
  storage.owned_records.push_back(record);
  const auto length = static_cast<int64_t>(example.input_ids.size());
  Preparation& counts = storage.preparation;
  ++counts.documents;
  counts.tokens += length;
  counts.target_tokens += count_targets(example.labels);
  counts.longest = std::max(counts.longest, length);
}

std::shared_ptr<TokenDataset::Storage> StorageBuilder::finish(std::string fingerprint) {
  TokenDataset::Storage& storage = *storage_;
  storage.offsets = storage.owned_offsets;
  storage.records = storage.owned_records;
  storage.ids = storage.owned_ids;
  storage.labels = storage.owned_labels;
  storage.fingerprint = std::move(fingerprint);
  return std::exchange(storage_, nullptr);
}

}  // namespace fettle::data
