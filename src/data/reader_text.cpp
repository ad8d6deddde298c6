// SPDX-License-Identifier: Apache-2.0
/// Plain text as Hugging Face datasets' text loader cuts it, by line, paragraph or document.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "data/reader.h"

namespace fettle::data {
namespace {

/// Python's universal newlines: CRLF and lone CR become LF.
std::string with_unix_newlines(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != '\r') {
      text += bytes[i];
    } else {
      text += '\n';
      if (i + 1 < bytes.size() && bytes[i + 1] == '\n') ++i;
    }
  }
  return text;
}

class TextReader final : public RecordReader {
 public:
  TextReader(Source source, std::string_view separator)
      : RecordReader(source.name), source_(std::move(source)), separator_(separator), rest_(source_.bytes) {
    if (rest_.find('\r') != std::string_view::npos) {
      translated_ = with_unix_newlines(rest_);
      rest_ = translated_;
    }
  }

  bool next(RawRecord& record) override {
    while (!rest_.empty()) {
      const size_t end = separator_.empty() ? std::string_view::npos : rest_.find(separator_);
      const std::string_view sample = rest_.substr(0, end);
      const std::string_view taken = end == std::string_view::npos ? rest_ : rest_.substr(0, end + separator_.size());
      const int64_t line = line_;
      line_ += std::count(taken.begin(), taken.end(), '\n');
      rest_.remove_prefix(taken.size());
      if (sample.empty() && separator_.size() == 2) continue;  // more than one blank line between paragraphs
      record = RawRecord{sample, line, ++number_, nullptr};
      return true;
    }
    return false;
  }

  [[nodiscard]] Record parse(const RawRecord& record) const override {
    check_text(record.bytes);
    return Record{{"text", std::string(record.bytes)}};
  }

 private:
  Source source_;
  std::string_view separator_;  // "\n", "\n\n" or none
  std::string translated_;
  std::string_view rest_;
  int64_t line_ = 1;
  int64_t number_ = 0;
};

}  // namespace

std::unique_ptr<RecordReader> open_text(Source source, const std::string& sample_by) {
  if (sample_by == "line") return std::make_unique<TextReader>(std::move(source), "\n");
  if (sample_by == "paragraph") return std::make_unique<TextReader>(std::move(source), "\n\n");
  if (sample_by == "document") return std::make_unique<TextReader>(std::move(source), "");
  throw Error(ExitCode::kUsage, fmt::format("sample_by: '{}' is not known", sample_by),
              "use line, paragraph or document");
}

}  // namespace fettle::data
