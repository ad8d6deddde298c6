// SPDX-License-Identifier: Apache-2.0
/// CSV after RFC 4180: a header row, quoted fields with commas, line breaks and doubled quotes; LF, CRLF or CR. Every
/// field is a string: nothing is guessed to be a number or a null.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/utf8.h"
#include "data/reader.h"
#include "hub/json.h"

namespace fettle::data {
namespace {

constexpr size_t kIncomplete = std::string_view::npos;

/// The end of the field that begins at `begin`: the position of its comma or line break, or the end of the text;
/// kIncomplete if a quote is never closed.
size_t field_end(std::string_view text, size_t begin) {
  size_t position = begin;
  if (position < text.size() && text[position] == '"') {
    for (++position;; position += 2) {
      position = text.find('"', position);
      if (position == kIncomplete) return kIncomplete;
      if (position + 1 >= text.size() || text[position + 1] != '"') break;
    }
    ++position;
  }
  return std::min(text.find_first_of(",\r\n", position), text.size());
}

/// What a field means: itself, or the inside of its quotes. Throws BadRecord for text after a closing quote.
std::string field_value(std::string_view field) {
  if (!field.starts_with('"')) return std::string(field);
  std::string value;
  size_t position = 1;
  while (true) {
    const size_t quote = field.find('"', position);
    value += field.substr(position, quote - position);
    if (quote + 1 >= field.size()) return value;
    if (field[quote + 1] != '"') throw BadRecord("malformed CSV", "text after a closing quote");
    value += '"';
    position = quote + 2;
  }
}

std::vector<std::string> split_row(std::string_view row) {
  std::vector<std::string> fields;
  for (size_t begin = 0;;) {
    const size_t end = field_end(row, begin);
    fields.push_back(field_value(row.substr(begin, end - begin)));
    if (end == row.size()) return fields;
    begin = end + 1;
  }
}

class CsvReader final : public RecordReader {
 public:
  explicit CsvReader(Source source) : RecordReader(source.name), source_(std::move(source)), rest_(source_.bytes) {
    RawRecord header;
    if (!next_row(header)) return;
    try {
      check_text(header.bytes);
      columns_ = split_row(header.bytes);
    } catch (const BadRecord& bad) {
      throw Error(ExitCode::kData, fmt::format("{}: header row: {}", place(header), bad.what()));
    }
    name_columns(place(header));
  }

  bool next(RawRecord& record) override {
    if (!next_row(record)) return false;
    record.number = ++number_;
    return true;
  }

  [[nodiscard]] Record parse(const RawRecord& record) const override {
    check_text(record.bytes);
    std::vector<std::string> fields = split_row(record.bytes);
    if (fields.size() != columns_.size()) {
      throw BadRecord("wrong number of CSV fields",
                      fmt::format("{} where the header has {}", fields.size(), columns_.size()));
    }
    Record columns = Record::object();
    for (size_t i = 0; i < fields.size(); ++i) columns[columns_[i]] = std::move(fields[i]);
    return columns;
  }

 private:
  /// A nameless column is what pandas' to_csv writes for its index.
  void name_columns(const std::string& header) {
    std::set<std::string> seen;
    for (size_t i = 0; i < columns_.size(); ++i) {
      if (columns_[i].empty()) columns_[i] = fmt::format("Unnamed: {}", i);
      if (!seen.insert(columns_[i]).second) {
        throw Error(ExitCode::kData, fmt::format("{}: column {} comes twice", header, quote(columns_[i])),
                    "rename one of them in the header row");
      }
    }
  }

  /// The next row that is not blank.
  bool next_row(RawRecord& row) {
    while (!rest_.empty() && (rest_.front() == '\n' || rest_.front() == '\r')) skip_line_break();
    if (rest_.empty()) return false;
    size_t end = field_end(rest_, 0);
    while (end != kIncomplete && end < rest_.size() && rest_[end] == ',') end = field_end(rest_, end + 1);
    if (end == kIncomplete) {
      throw Error(ExitCode::kData, fmt::format("{}:{}: a quote in this row is never closed", name_, line_),
                  "double the quotes inside quoted fields (\"\")");
    }
    row = RawRecord{rest_.substr(0, end), line_, 0, nullptr};
    line_ += std::count(row.bytes.begin(), row.bytes.end(), '\n');
    rest_.remove_prefix(end);
    if (!rest_.empty()) skip_line_break();
    return true;
  }

  void skip_line_break() {
    rest_.remove_prefix(rest_.starts_with("\r\n") ? 2 : 1);
    ++line_;
  }

  Source source_;
  std::string_view rest_;
  std::vector<std::string> columns_;
  int64_t line_ = 1;
  int64_t number_ = 0;
};

}  // namespace

std::unique_ptr<RecordReader> open_csv(Source source) {
  return std::make_unique<CsvReader>(std::move(source));
}

}  // namespace fettle::data
