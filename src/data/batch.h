// SPDX-License-Identifier: Apache-2.0
/// The order of training: documents → packed rows → micro-batches, as a pure function of (lengths, options, epoch).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/dataset.h"

namespace fettle::data {

/// A flat token stream of whole documents that never see each other; nothing is padded, unless rows are filled: then
/// what fills a row is a document of its own, without targets. T tokens, n documents.
struct Batch {
  std::vector<int64_t> tokens;      ///< [T]
  std::vector<int64_t> labels;      ///< [T] shifted: the target predicted at t; kIgnore at a document's last token
  std::vector<int64_t> positions;   ///< [T] restart at 0 in each document
  std::vector<int32_t> cu_seqlens;  ///< [n+1] document boundaries: 0 … T
  std::vector<int64_t> documents;   ///< [n] dataset index of each document in the stream; of filling: kFilling
  int64_t target_tokens = 0;        ///< labels that are not kIgnore
  int64_t row_length = 0;           ///< tokens of each row, if rows are filled: T is a multiple of it; else 0
  bool one_document_a_row = false;  ///< of filled rows: the filling comes after it
};

inline constexpr int64_t kFilling = -1;

/// One document as a batch of its own; `index` of the dataset.
Batch single_document(const TokenDataset& dataset, int64_t index);

/// Makes the stream longer by `tokens` tokens that nobody sees and nobody learns from.
void append_filling(Batch& batch, int64_t tokens);

struct OrderOptions {
  int64_t max_seq_length = 1024;  ///< tokens that a packed row may have
  bool packing = true;            ///< false: one document a row
  bool shuffle = true;            ///< false: the dataset's order
  int64_t seed = 42;
  int64_t batch_size = 8;  ///< rows of a micro-batch
  /// Every micro-batch has batch_size rows of max_seq_length tokens, for a device that compiles for one shape.
  bool fill_rows = false;
};

/// One epoch's micro-batches. Building it costs O(n log n) in documents; any batch is then reached at once, so the
/// position in the data is two integers: (epoch, index).
///  - shuffle: documents are permuted by (seed, epoch) before packing, and the rows again after it.
///  - packing: best fit decreasing, as TRL's "bfd"; documents of equal length go in permuted order, so that packs
///    differ between epochs. Without shuffle, documents in a row and rows by their first document keep the dataset's
///    order.
///  - every document comes exactly once an epoch.
class BatchOrder {
 public:
  /// Throws Error{kConfig} when a document is longer than max_seq_length (it was prepared with another one).
  BatchOrder(const TokenDataset& dataset, OrderOptions options, int64_t epoch);

  [[nodiscard]] int64_t batches() const;           ///< micro-batches in the epoch; the last may have fewer rows
  [[nodiscard]] Batch batch(int64_t index) const;  ///< 0 ≤ index < batches()
  /// Dataset indices of a micro-batch's documents: batch(index).documents without the tokens.
  [[nodiscard]] std::span<const int64_t> documents(int64_t index) const;
  [[nodiscard]] int64_t rows() const;
  [[nodiscard]] double packing_efficiency() const;  ///< tokens / (rows × max_seq_length)

 private:
  [[nodiscard]] std::span<const int64_t> row_documents(int64_t first, int64_t last) const;

  TokenDataset dataset_;
  OrderOptions options_;
  std::vector<int64_t> documents_;    // every document once, row after row
  std::vector<int64_t> row_offsets_;  // [rows+1] into documents_
};

}  // namespace fettle::data
