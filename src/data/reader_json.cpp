// SPDX-License-Identifier: Apache-2.0
/// JSON: an array of records, an object that holds one, a single record, or one record a line. Records are found by
/// brackets and quotes alone, so that a big array is neither parsed twice nor held in memory as a tree.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/utf8.h"
#include "data/reader.h"

namespace fettle::data {
namespace {

constexpr size_t kNone = std::string_view::npos;
constexpr int kMaxDepth =
    64;  // no dataset comes near it; a hostile file must not exhaust the stack of whoever renders it
constexpr std::string_view kJsonWhite = " \t\r\n";
constexpr std::string_view kBrackets = "\"{}[]";

/// The position after the string that opens at `begin`; kNone if it never closes.
size_t string_end(std::string_view text, size_t begin) {
  size_t position = text.find_first_of("\"\\", begin + 1);
  while (position != kNone && text[position] == '\\') position = text.find_first_of("\"\\", position + 2);
  return position == kNone ? kNone : position + 1;
}

/// The position after the value at `begin` (not white space); kNone if it is not complete. Malformed values end
/// somewhere: parsing them reports why. `depth` becomes the deepest nesting.
size_t value_end(std::string_view text, size_t begin, int& depth) {
  depth = 0;
  int open = 0;
  for (size_t position = begin; position < text.size();) {
    const char c = text[position];
    if (c == '"') {
      position = string_end(text, position);
      if (position == kNone) return kNone;
    } else if (c == '{' || c == '[') {
      depth = std::max(depth, ++open);
      ++position;
    } else if (c == '}' || c == ']') {
      --open;
      ++position;
    } else if (open > 0) {
      position = std::min(text.find_first_of(kBrackets, position), text.size());
      continue;
    } else {
      return std::min(text.find_first_of(",]} \t\r\n", position), text.size());
    }
    if (open <= 0) return position;
  }
  return kNone;
}

size_t skip_white(std::string_view text, size_t position) {
  return std::min(text.find_first_not_of(kJsonWhite, position), text.size());
}

/// Where the array of records opens in `text`, an object: the value of its member "data", or its only member if that is
/// an array of objects that are not messages. None: the object is a record itself.
std::optional<size_t> find_record_array(std::string_view text, const config::DataConfig& config) {
  std::optional<size_t> found;
  size_t members = 0;
  int depth = 0;
  for (size_t position = skip_white(text, 1); position < text.size() && text[position] == '"';) {
    const size_t name_end = string_end(text, position);
    if (name_end == kNone) return std::nullopt;
    const std::string_view name = text.substr(position + 1, name_end - position - 2);
    const size_t colon = skip_white(text, name_end);
    const size_t value = skip_white(text, colon + 1);
    if (colon >= text.size() || text[colon] != ':' || value >= text.size()) return std::nullopt;
    const size_t first = text[value] == '[' ? skip_white(text, value + 1) : text.size();
    const bool messages = name == config.messages_column || name == config.conversations_column;
    const bool objects = !messages && first < text.size() && (text[first] == '{' || text[first] == ']');
    if (objects && name == "data") return value;
    const size_t end = value_end(text, value, depth);
    if (objects) found = value;
    ++members;
    if (end == kNone) return members == 1 ? found : std::nullopt;  // the array reader says where it breaks off
    position = skip_white(text, end);
    if (position < text.size() && text[position] == ',') position = skip_white(text, position + 1);
  }
  return members == 1 ? found : std::nullopt;
}

class JsonArrayReader final : public RecordReader {
 public:
  /// `open`: where the array's bracket is. What follows the array's end is checked only if the array is the whole file.
  JsonArrayReader(Source source, size_t open, bool whole)
      : RecordReader(source.name), source_(std::move(source)), text_(source_.bytes), whole_(whole) {
    advance(open + 1);
  }

  bool next(RawRecord& record) override {
    if (done_) return false;
    advance(skip_white(text_, position_));
    if (number_ == 0 ? at(']') : !at(',')) return finish();
    if (number_ > 0) advance(skip_white(text_, position_ + 1));
    const int64_t line = line_;
    int depth = 0;
    const size_t end = position_ < text_.size() ? value_end(text_, position_, depth) : kNone;
    if (end == kNone) {
      throw Error(ExitCode::kData,
                  fmt::format("{}: the file ends inside record {}, which begins in line {}", name_, number_ + 1, line),
                  "is it cut off, or is a quote or bracket missing?");
    }
    if (end == position_ || at(']')) fail("a record was expected");
    record = RawRecord{text_.substr(position_, end - position_), line, ++number_, nullptr};
    advance(end);
    return true;
  }

  [[nodiscard]] Record parse(const RawRecord& record) const override { return parse_json_record(record.bytes); }

 private:
  [[nodiscard]] bool at(char c) const { return position_ < text_.size() && text_[position_] == c; }

  void advance(size_t to) {
    line_ +=
        std::count(text_.begin() + static_cast<ptrdiff_t>(position_), text_.begin() + static_cast<ptrdiff_t>(to), '\n');
    position_ = to;
  }

  [[noreturn]] void fail(std::string_view what) const {
    throw Error(ExitCode::kData, fmt::format("{}:{}: {} after record {}", name_, line_, what, number_),
                "the file must be a JSON array of objects, or one object a line");
  }

  bool finish() {
    if (position_ >= text_.size()) fail("the file ends where ',' or ']' was expected");
    if (!at(']')) fail("',' or ']' was expected");
    if (whole_ && skip_white(text_, position_ + 1) < text_.size()) fail("the array ends and something follows");
    done_ = true;
    return false;
  }

  Source source_;
  std::string_view text_;
  bool whole_;
  bool done_ = false;
  size_t position_ = 0;
  int64_t line_ = 1;
  int64_t number_ = 0;
};

class JsonLinesReader final : public RecordReader {
 public:
  /// `single`: the whole file is one record, which may span lines.
  JsonLinesReader(Source source, bool single)
      : RecordReader(source.name), source_(std::move(source)), rest_(source_.bytes), single_(single) {}

  bool next(RawRecord& record) override {
    while (!rest_.empty()) {
      const size_t end = single_ ? rest_.size() : std::min(rest_.find('\n'), rest_.size());
      const std::string_view line = rest_.substr(0, end);
      rest_.remove_prefix(std::min(end + 1, rest_.size()));
      ++line_;
      const size_t begin = line.find_first_not_of(kJsonWhite);
      if (begin == kNone) continue;
      const size_t last = line.find_last_not_of(kJsonWhite);
      record = RawRecord{line.substr(begin, last - begin + 1), line_, ++number_, nullptr};
      return true;
    }
    return false;
  }

  [[nodiscard]] Record parse(const RawRecord& record) const override { return parse_json_record(record.bytes); }

 private:
  Source source_;
  std::string_view rest_;
  bool single_;
  int64_t line_ = 0;
  int64_t number_ = 0;
};

/// nlohmann's explanation without its own prefix: "[json.exception…] parse error at line 1, column 9: " goes, and so
/// does most of a long string that it repeats.
std::string parser_message(const nlohmann::json::exception& error) {
  constexpr size_t kLongest = 160;
  std::string_view message = error.what();
  const size_t colon = message.find(": ");
  if (colon != kNone) message.remove_prefix(colon + 2);
  return one_line(message.substr(0, kLongest));
}

/// Why `bytes` is not JSON, which the parser saw at `position` (from 1).
std::string explain(std::string_view bytes, size_t position, const nlohmann::json::exception& error) {
  const std::string_view rest = bytes.substr(std::min(position - std::min<size_t>(position, 1), bytes.size()));
  for (const std::string_view word : {"NaN", "Infinity"}) {
    if (rest.starts_with(word)) {
      return fmt::format("{} is not JSON (Python's json.dump writes it for a missing value); write null or \"\"", word);
    }
  }
  return parser_message(error);
}

}  // namespace

std::unique_ptr<RecordReader> open_json_lines(Source source) {
  return std::make_unique<JsonLinesReader>(std::move(source), false);
}

std::unique_ptr<RecordReader> open_json(Source source, const config::DataConfig& config) {
  const std::string_view text = source.bytes;
  const size_t begin = skip_white(text, 0);
  if (begin == text.size()) return open_json_lines(std::move(source));
  if (text[begin] == '[') return std::make_unique<JsonArrayReader>(std::move(source), begin, true);
  if (text[begin] != '{') {
    throw Error(ExitCode::kData, fmt::format("{} does not begin with '[' or '{{'", source.name),
                "the file must be a JSON array of objects, or one object a line");
  }
  int depth = 0;
  const size_t end = value_end(text, begin, depth);
  const bool one_object = end == kNone || skip_white(text, end) == text.size();
  const auto array = one_object ? find_record_array(text.substr(begin), config) : std::nullopt;
  if (array) return std::make_unique<JsonArrayReader>(std::move(source), begin + *array, false);
  if (!one_object && end > text.find('\n', begin)) {
    throw Error(ExitCode::kData, fmt::format("{}: several objects that span lines", source.name),
                "write them as a JSON array, or one object a line");
  }
  return std::make_unique<JsonLinesReader>(std::move(source), one_object && end != kNone);
}

void check_depth(std::string_view json) {
  int open = 0;
  for (size_t at = json.find_first_of(kBrackets); at != kNone; at = json.find_first_of(kBrackets, at)) {
    const char c = json[at];
    at = c == '"' ? string_end(json, at) : at + 1;
    if (at == kNone) return;  // never closed: parsing it says so
    if (c != '"') open += c == '{' || c == '[' ? 1 : -1;
    if (open > kMaxDepth) throw BadRecord("nested too deeply", fmt::format("more than {} levels", kMaxDepth));
  }
}

Record parse_json_record(std::string_view bytes) {
  check_text(bytes);
  check_depth(bytes);
  Record record;
  try {
    record = Record::parse(bytes);
  } catch (const nlohmann::json::parse_error& error) {
    throw BadRecord("malformed JSON",
                    fmt::format("at byte {} of the record: {}", error.byte, explain(bytes, error.byte, error)));
  } catch (const nlohmann::json::exception& error) {
    throw BadRecord("malformed JSON", parser_message(error));
  }
  if (record.is_string()) return Record{{"text", std::move(record)}};
  if (!record.is_object()) throw BadRecord("not an object", fmt::format("the record is {}", kind_of(record)));
  return record;
}

}  // namespace fettle::data
