// SPDX-License-Identifier: Apache-2.0
/// The records of a run as tokens: read, split, templated, tokenized on all cores and cached by content.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "data/example.h"
#include "text/tokenizer.h"

namespace fettle::data {

/// What became of the records of one split.
struct Preparation {
  int64_t records = 0;                         ///< read
  int64_t documents = 0;                       ///< kept, after splitting long ones (bfd_split)
  int64_t truncated = 0;                       ///< documents cut off at max_seq_length
  int64_t dropped_pieces = 0;                  ///< pieces without a target of records that gave others (bfd_split)
  int64_t dropped = 0;                         ///< records that gave no document
  int64_t duplicates = 0;                      ///< documents equal to an earlier one, token for token; kept
  int64_t tokens = 0;                          ///< of all documents
  int64_t target_tokens = 0;                   ///< labels that are predicted: not kIgnore, and not a document's first
  int64_t ended = 0;                           ///< documents whose end mark (EOS or end of turn) is a target
  int64_t longest = 0;                         ///< tokens of the longest document
  double packing_efficiency = 0;               ///< tokens / (rows × max_seq_length); 0 without packing
  std::map<std::string, int64_t> dropped_why;  ///< reason → records; sums to `dropped`
};

/// An immutable store of documents, in the records' order. A cheap handle: copies share one memory-mapped cache file or
/// one block of memory. Safe to read from many threads.
class TokenDataset {
 public:
  /// Documents from memory, e.g. in tests. Throws Error{kInternal} for an empty one, or where ids and labels differ in
  /// length.
  static TokenDataset from_examples(const std::vector<Example>& examples);

  [[nodiscard]] int64_t size() const;
  [[nodiscard]] std::span<const int32_t> input_ids(int64_t index) const;
  [[nodiscard]] std::span<const int32_t> labels(int64_t index) const;
  [[nodiscard]] int64_t length(int64_t index) const;   ///< tokens of one document
  [[nodiscard]] int64_t targets(int64_t index) const;  ///< labels of one document that are predicted
  /// The record that a document came from, counted from 0 in its split before records were dropped.
  [[nodiscard]] int64_t record(int64_t index) const;
  [[nodiscard]] int64_t tokens() const;
  [[nodiscard]] int64_t target_tokens() const;
  /// SHA-256 over everything that decides the tokens: file contents, options, tokenizer. Equal only for equal data.
  [[nodiscard]] const std::string& fingerprint() const;
  [[nodiscard]] const Preparation& preparation() const;

  /// The storage behind a dataset (cache.h makes it).
  struct Storage;
  explicit TokenDataset(std::shared_ptr<const Storage> storage);

 private:
  std::shared_ptr<const Storage> storage_;
};

struct PreparedData {
  TokenDataset train;  ///< empty when only evaluation was asked for
  std::optional<TokenDataset> validation;
};

/// Reads, splits, templates and tokenizes the records, or maps the cache of an earlier run, and logs a report.
/// `need_train` false (fettle eval): only the validation records are prepared. `cache_dir`: ModelConfig's, for what is
/// downloaded.
/// Throws Error: kNoInput (a file is missing), kData (bad record with its place; no record left), kConfig (options that
/// do not fit the records or the tokenizer).
PreparedData prepare(const config::DataConfig& config, const text::Tokenizer& tokenizer, bool need_train,
                     const std::string& cache_dir = {});

}  // namespace fettle::data
