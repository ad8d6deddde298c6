// SPDX-License-Identifier: Apache-2.0
#include "data/export.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/utf8.h"
#include "data/build.h"
#include "data/files.h"
#include "data/reader.h"
#include "data/record.h"

namespace fettle::data {
namespace fs = std::filesystem;
namespace {

std::string json_text(const Record& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/false, Record::error_handler_t::replace);
}

/// RFC 4180.
std::string csv_cell(const Record& value) {
  std::string text = value.is_null() ? "" : value.is_string() ? value.get<std::string>() : json_text(value);
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + '"';
}

/// Records into one file, one after the other.
class RecordWriter {
 public:
  explicit RecordWriter(const fs::path& path) : format_(file_format(path)), file_(path) {}

  void write(const Record& record, const std::string& place) {
    const bool is_first = count_++ == 0;
    switch (format_) {
      case FileFormat::kJson:
        return file_.write((is_first ? "[\n" : ",\n") + json_text(record));
      case FileFormat::kCsv:
        if (is_first) write_header(record);
        return file_.write(csv_row(record, place));
      default:
        return file_.write(json_text(record) + "\n");
    }
  }

  int64_t commit() {
    if (format_ == FileFormat::kJson) file_.write(count_ == 0 ? "[]\n" : "\n]\n");
    file_.commit();
    return count_;
  }

 private:
  void write_header(const Record& record) {
    std::string row;
    for (const auto& [name, value] : record.items()) {
      if (!columns_.empty()) row += ',';
      columns_.push_back(name);
      row += csv_cell(name);
    }
    file_.write(csv_line(std::move(row)));
  }

  [[nodiscard]] std::string csv_row(const Record& record, const std::string& place) const {
    for (const auto& [name, value] : record.items()) {
      if (std::ranges::find(columns_, name) != columns_.end()) continue;
      throw Error(ExitCode::kData, fmt::format("{}: column {} is not in the first record", place, quote(name)),
                  "write .jsonl, where every record has its own columns");
    }
    std::string row;
    for (size_t i = 0; i < columns_.size(); ++i) {
      if (i > 0) row += ',';
      if (record.contains(columns_[i])) row += csv_cell(record[columns_[i]]);
    }
    return csv_line(std::move(row));
  }

  /// A single empty cell is quoted: readers pass over an empty line.
  [[nodiscard]] std::string csv_line(std::string row) const {
    if (columns_.size() == 1 && row.empty()) row = "\"\"";
    return row + "\n";
  }

  FileFormat format_;
  AtomicFile file_;
  std::vector<std::string> columns_;
  int64_t count_ = 0;
};

config::RecordRange range_of(const DataFiles& files, const config::DataConfig& config) {
  if (!files.train_slice) return {0, std::numeric_limits<int64_t>::max()};
  return slice_range(*files.train_slice, count_records(files.train, config));
}

}  // namespace

void require_export_format(const fs::path& output) {
  const auto format = find_file_format(output);
  if (format && *format != FileFormat::kText && *format != FileFormat::kParquet) return;
  throw Error(ExitCode::kUsage, fmt::format("output: {} is written neither as JSON nor as CSV", quote(output.string())),
              "name a file .json, .jsonl or .csv");
}

int64_t export_records(const config::DataConfig& config, const fs::path& output, const std::string& cache_dir) {
  const DataFiles files = find_files(config, Needed::kTrain, cache_dir);
  std::error_code failure;
  for (const fs::path& input : files.train) {
    if (!fs::equivalent(input, output, failure)) continue;
    throw Error(ExitCode::kUsage, fmt::format("output: {} is the input {}", output.string(), input.string()),
                "name another file");
  }
  const config::RecordRange range = range_of(files, config);
  RecordWriter writer(output);
  int64_t index = 0;
  for (const fs::path& input : files.train) {
    const auto reader = open_records(input, config);
    for (RawRecord raw; index < range.end && reader->next(raw); ++index) {
      if (index < range.begin) continue;
      try {
        writer.write(reader->parse(raw), reader->place(raw));
      } catch (const BadRecord& bad) {
        throw Error(ExitCode::kData, fmt::format("{}: {}", reader->place(raw), bad.what()), "correct the record");
      }
    }
  }
  return writer.commit();
}

}  // namespace fettle::data
