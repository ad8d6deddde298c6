// SPDX-License-Identifier: Apache-2.0
/// The bytes behind a TokenDataset: built in memory, written to and mapped from one cache file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/dataset.h"

namespace fettle::data {

/// Columns of all documents, one after the other. The spans look into `map` or into the vectors.
struct TokenDataset::Storage {
  std::span<const int64_t> offsets;  // [documents + 1] into ids and labels
  std::span<const int64_t> records;  // [documents]
  std::span<const int32_t> ids;      // [tokens]
  std::span<const int32_t> labels;   // [tokens]
  Preparation preparation;
  std::string fingerprint;

  std::shared_ptr<const MappedFile> map;
  std::vector<int64_t> owned_offsets;
  std::vector<int64_t> owned_records;
  std::vector<int32_t> owned_ids;
  std::vector<int32_t> owned_labels;
};

/// Collects documents in order.
class StorageBuilder {
 public:
  StorageBuilder();
  /// Counts tokens and targets; the counts of records are the caller's. Throws Error{kInternal} if lengths differ.
  void add(const Example& example, int64_t record);
  [[nodiscard]] Preparation& preparation() { return storage_->preparation; }
  [[nodiscard]] std::shared_ptr<TokenDataset::Storage> finish(std::string fingerprint);

 private:
  std::shared_ptr<TokenDataset::Storage> storage_;
};

/// Label count that training predicts: the first token of a document has nothing before it.
int64_t count_targets(std::span<const int32_t> labels);

/// Writes the cache file: a header (magic, version, counts, file size), the columns, the report, and a SHA-256 over all
/// of it. Appears under its name only when complete; of several writers the last wins, and all wrote the same. Throws
/// Error{kIo} or {kPermission}.
void write_cache(const std::filesystem::path& path, const TokenDataset::Storage& storage);

/// Maps a cache file; none if it is not there. Throws Error{kData} saying why a file cannot be trusted: truncated,
/// changed, of another version or fingerprint.
std::shared_ptr<TokenDataset::Storage> read_cache(const std::filesystem::path& path, const std::string& fingerprint);

}  // namespace fettle::data
