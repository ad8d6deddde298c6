// SPDX-License-Identifier: Apache-2.0
/// Parquet files as JSON lines.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace fettle::text {

/// Reads a Parquet file (uncompressed, snappy, gzip, zstd, lz4 or brotli), some rows at a time. Lists and structs
/// become JSON arrays and objects in the columns' order, null and NaN become null. Move-only.
class ParquetReader {
 public:
  /// Throws Error{kNoInput}, {kPermission}, {kIo}, or {kData} if it is not a Parquet file that can be read.
  static ParquetReader open(const std::filesystem::path& path);

  /// Sets `json_lines` to the next rows, at most 1024 and about 1 MB, one JSON object a line; false (and empty) at the
  /// end.
  /// Throws Error{kData} naming the file for a corrupt page or a column type that JSON cannot hold.
  bool next_rows(std::string& json_lines);

  /// Rows of the whole file, from its footer.
  [[nodiscard]] int64_t rows() const;

  ParquetReader(ParquetReader&&) noexcept;
  ParquetReader& operator=(ParquetReader&&) noexcept;
  ~ParquetReader();

 private:
  struct State;
  explicit ParquetReader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fettle::text
