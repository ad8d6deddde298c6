// SPDX-License-Identifier: Apache-2.0
/// Data files as streams of records. Finding where a record begins and ends (`next`) is cheap and serial; making sense
/// of it (`parse`) costs ten times as much and may be done by many threads at once.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/file.h"
#include "config/config.h"
#include "data/record.h"

namespace fettle::data {

enum class FileFormat { kJson, kJsonLines, kCsv, kText, kParquet };

/// By extension in any case; none for one that is not known.
std::optional<FileFormat> find_file_format(const std::filesystem::path& path);

/// The same for .json, .jsonl (.ndjson), .csv, .txt, .parquet. Throws Error{kUsage} naming those for any other.
FileFormat file_format(const std::filesystem::path& path);

/// A record as it stands in its file.
struct RawRecord {
  std::string_view bytes;
  int64_t line = 0;                          ///< where it begins, from 1; 0 where a file has no lines (Parquet)
  int64_t number = 0;                        ///< in its file, from 1
  std::shared_ptr<const std::string> owner;  ///< keeps `bytes` alive where they are not the file's own
};

/// What a reader reads: a mapped file, or bytes in memory (fuzzers, tests).
struct Source {
  std::string name;                       ///< for messages
  std::string_view bytes;                 ///< without a byte order mark
  std::shared_ptr<const MappedFile> map;  ///< null for bytes that the caller keeps alive
};

class RecordReader {
 public:
  virtual ~RecordReader() = default;
  RecordReader(const RecordReader&) = delete;
  RecordReader& operator=(const RecordReader&) = delete;

  /// The next record, or false at the end. Throws Error{kData} with the line where the file's structure is broken, so
  /// that no later record could be told from an earlier one.
  virtual bool next(RawRecord& record) = 0;

  /// How many records `next` would give from the beginning. Of a fresh reader only: it may read them all.
  virtual int64_t count();

  /// The columns of a record that `next` gave. Thread-safe. Throws BadRecord.
  [[nodiscard]] virtual Record parse(const RawRecord& record) const = 0;

  /// "train.jsonl:12", or "train.parquet: record 12".
  [[nodiscard]] std::string place(const RawRecord& record) const;

 protected:
  explicit RecordReader(std::string name) : name_(std::move(name)) {}
  std::string name_;
};

/// sample_by (line, paragraph, document) says what a record of a .txt file is; messages_column and conversations_column
/// tell a lone JSON record from an object around the records. Throws Error: kNoInput, kPermission, kIo, kUsage
/// (extension), kData (unreadable head: UTF-16, no header row, not Parquet).
std::unique_ptr<RecordReader> open_records(const std::filesystem::path& path, const config::DataConfig& config);

/// The same for bytes in memory, any format but Parquet. The bytes must outlive the reader.
std::unique_ptr<RecordReader> open_records(FileFormat format, std::string_view bytes, const config::DataConfig& config);

/// Reads every record of `bytes` and hands it to `sink`; what a fuzzer calls. Throws Error{kData} for the first bad
/// one.
void read_records_from_memory(FileFormat format, std::string_view bytes, const std::function<void(Record)>& sink);

// The formats, one file each.
std::unique_ptr<RecordReader> open_json(Source source, const config::DataConfig& config);
std::unique_ptr<RecordReader> open_json_lines(Source source);
std::unique_ptr<RecordReader> open_csv(Source source);
std::unique_ptr<RecordReader> open_text(Source source, const std::string& sample_by);
std::unique_ptr<RecordReader> open_parquet(const std::filesystem::path& path);

/// One JSON object (or a string, which becomes the column `text`). Throws BadRecord: malformed, invalid UTF-8, nested
/// deeper than 64 levels, another type.
Record parse_json_record(std::string_view bytes);

/// Throws BadRecord for JSON text that is nested deeper than 64 levels; to be called before it is parsed.
void check_depth(std::string_view json);

/// Throws BadRecord with the offset of the first byte of `bytes` that is not UTF-8, or is NUL.
void check_text(std::string_view bytes);

}  // namespace fettle::data
