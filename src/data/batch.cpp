// SPDX-License-Identifier: Apache-2.0
#include "data/batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "data/packing.h"
#include "data/permutation.h"
#include "data/storage.h"

namespace fettle::data {
namespace {

/// Streams of one epoch's random numbers: documents before packing, rows after it.
constexpr uint64_t kDocumentStream = 0;
constexpr uint64_t kRowStream = 1;

uint64_t stream_of(int64_t epoch, uint64_t purpose) {
  return 2 * static_cast<uint64_t>(epoch) + purpose;
}

std::vector<int64_t> identity(int64_t size) {
  std::vector<int64_t> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

void check(const TokenDataset& dataset, const OrderOptions& options) {
  if (options.batch_size < 1 || options.max_seq_length < 1) {
    throw Error(ExitCode::kInternal, "a batch needs at least one row of one token");
  }
  if (dataset.preparation().longest > options.max_seq_length) {
    throw Error(
        ExitCode::kConfig,
        fmt::format("a document has {} tokens, a row {}", dataset.preparation().longest, options.max_seq_length),
        "prepare the data with the same max_seq_length");
  }
}

void close_document(Batch& batch, int64_t document) {
  batch.documents.push_back(document);
  if (batch.tokens.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw Error(ExitCode::kConfig, "a micro-batch has more than 2^31 tokens", "lower the batch size");
  }
  batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
}

void append(Batch& batch, const TokenDataset& dataset, int64_t document) {
  const auto ids = dataset.input_ids(document);
  const auto labels = dataset.labels(document);
  batch.tokens.insert(batch.tokens.end(), ids.begin(), ids.end());
  batch.labels.insert(batch.labels.end(), labels.begin() + 1, labels.end());
  batch.labels.push_back(kIgnore);
  for (size_t t = 0; t < ids.size(); ++t) batch.positions.push_back(static_cast<int64_t>(t));
  batch.target_tokens += count_targets(labels);
  close_document(batch, document);
}

}  // namespace

Batch single_document(const TokenDataset& dataset, int64_t index) {
  Batch batch;
  batch.cu_seqlens.push_back(0);
  append(batch, dataset, index);
  return batch;
}

void append_filling(Batch& batch, int64_t tokens) {
  if (tokens == 0) return;
  const size_t size = batch.tokens.size() + static_cast<size_t>(tokens);
  batch.tokens.resize(size, 0);
  batch.labels.resize(size, kIgnore);
  batch.positions.resize(size, 0);
  close_document(batch, kFilling);
}

BatchOrder::BatchOrder(const TokenDataset& dataset, OrderOptions options, int64_t epoch)
    : dataset_(dataset), options_(options) {
  check(dataset, options);
  const int64_t size = dataset.size();
  const auto seed = static_cast<uint64_t>(options.seed);
  documents_ = options.shuffle ? permutation(size, seed, stream_of(epoch, kDocumentStream)) : identity(size);
  if (!options.packing) {
    row_offsets_ = identity(size + 1);
    return;
  }
  std::vector<int64_t> lengths(documents_.size());
  std::transform(documents_.begin(), documents_.end(), lengths.begin(), [&](int64_t i) { return dataset.length(i); });
  Packing rows = pack_best_fit(lengths, options.max_seq_length);
  if (options.shuffle) rows = rows.reordered(permutation(rows.rows(), seed, stream_of(epoch, kRowStream)));
  std::vector<int64_t> packed(documents_.size());
  std::transform(rows.items.begin(), rows.items.end(), packed.begin(),
                 [&](int64_t item) { return documents_[static_cast<size_t>(item)]; });
  documents_ = std::move(packed);
  row_offsets_ = std::move(rows.offsets);
}

int64_t BatchOrder::rows() const {
  return static_cast<int64_t>(row_offsets_.size()) - 1;
}

int64_t BatchOrder::batches() const {
  return (rows() + options_.batch_size - 1) / options_.batch_size;
}

double BatchOrder::packing_efficiency() const {
  if (rows() == 0) return 0;
  return static_cast<double>(dataset_.tokens()) /
         (static_cast<double>(rows()) * static_cast<double>(options_.max_seq_length));
}

std::span<const int64_t> BatchOrder::documents(int64_t index) const {
  if (index < 0 || index >= batches()) {
    throw Error(ExitCode::kInternal, fmt::format("batch {} of {}", index, batches()));
  }
  const int64_t first_row = index * options_.batch_size;
  return row_documents(first_row, std::min(first_row + options_.batch_size, rows()));
}

std::span<const int64_t> BatchOrder::row_documents(int64_t first, int64_t last) const {
  const auto begin = documents_.begin() + row_offsets_[static_cast<size_t>(first)];
  return {begin, documents_.begin() + row_offsets_[static_cast<size_t>(last)]};
}

Batch BatchOrder::batch(int64_t index) const {
  const std::span<const int64_t> documents = this->documents(index);
  Batch batch;
  batch.cu_seqlens.push_back(0);
  if (!options_.fill_rows) {
    for (const int64_t document : documents) append(batch, dataset_, document);
    return batch;
  }
  batch.row_length = options_.max_seq_length;
  batch.one_document_a_row = !options_.packing;
  const int64_t first_row = index * options_.batch_size;
  for (int64_t row = first_row; row < first_row + options_.batch_size; ++row) {
    if (row < rows()) {
      for (const int64_t document : row_documents(row, row + 1)) append(batch, dataset_, document);
    }
    append_filling(batch, (row - first_row + 1) * options_.max_seq_length - std::ssize(batch.tokens));
  }
  return batch;
}

}  // namespace fettle::data
