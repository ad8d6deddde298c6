// SPDX-License-Identifier: Apache-2.0
#include "data/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "base/utf8.h"

namespace fettle::data {
namespace fs = std::filesystem;
namespace {

/// Drops UTF-8's byte order mark; refuses UTF-16's.
std::string_view without_byte_order_mark(std::string_view bytes, const std::string& name) {
  if (bytes.starts_with("\xEF\xBB\xBF")) return bytes.substr(3);
  if (bytes.starts_with("\xFF\xFE") || bytes.starts_with("\xFE\xFF")) {
    throw Error(ExitCode::kData, fmt::format("{} is UTF-16 text", name), "save it as UTF-8");
  }
  return bytes;
}

std::unique_ptr<RecordReader> open_source(FileFormat format, Source source, const config::DataConfig& config) {
  switch (format) {
    case FileFormat::kJson:
      return open_json(std::move(source), config);
    case FileFormat::kJsonLines:
      return open_json_lines(std::move(source));
    case FileFormat::kCsv:
      return open_csv(std::move(source));
    case FileFormat::kText:
      return open_text(std::move(source), config.sample_by);
    case FileFormat::kParquet:
      break;
  }
  throw Error(ExitCode::kInternal, "Parquet is read from files only");
}

}  // namespace

std::optional<FileFormat> find_file_format(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  if (extension == ".json") return FileFormat::kJson;
  if (extension == ".jsonl" || extension == ".ndjson") return FileFormat::kJsonLines;
  if (extension == ".csv") return FileFormat::kCsv;
  if (extension == ".txt") return FileFormat::kText;
  if (extension == ".parquet") return FileFormat::kParquet;
  return std::nullopt;
}

FileFormat file_format(const fs::path& path) {
  if (const auto format = find_file_format(path)) return *format;
  throw Error(ExitCode::kUsage,
              fmt::format("{}: the extension '{}' is not known", path.string(), path.extension().string()),
              "use .json, .jsonl, .csv, .txt or .parquet");
}

int64_t RecordReader::count() {
  int64_t count = 0;
  for (RawRecord raw; next(raw);) ++count;
  return count;
}

std::string RecordReader::place(const RawRecord& record) const {
  if (record.line > 0) return fmt::format("{}:{}", name_, record.line);
  return fmt::format("{}: record {}", name_, record.number);
}

std::unique_ptr<RecordReader> open_records(const fs::path& path, const config::DataConfig& config) {
  const FileFormat format = file_format(path);
  if (format == FileFormat::kParquet) return open_parquet(path);
  auto map = MappedFile::open(path);
  const std::string_view bytes(reinterpret_cast<const char*>(map->bytes().data()), map->bytes().size());
  const std::string name = path.string();
  return open_source(format, Source{name, without_byte_order_mark(bytes, name), std::move(map)}, config);
}

std::unique_ptr<RecordReader> open_records(FileFormat format, std::string_view bytes,
                                           const config::DataConfig& config) {
  const std::string name = "memory";
  return open_source(format, Source{name, without_byte_order_mark(bytes, name), nullptr}, config);
}

void read_records_from_memory(FileFormat format, std::string_view bytes, const std::function<void(Record)>& sink) {
  const auto reader = open_records(format, bytes, config::DataConfig{});
  RawRecord raw;
  while (reader->next(raw)) {
    try {
      sink(reader->parse(raw));
    } catch (const BadRecord& bad) {
      throw Error(ExitCode::kData, fmt::format("{}: {}", reader->place(raw), bad.what()));
    }
  }
}

void check_text(std::string_view bytes) {
  const size_t nul = bytes.find('\0');
  if (nul != std::string_view::npos) throw BadRecord("NUL byte", fmt::format("at byte {} of the record", nul));
  const size_t invalid = find_invalid_utf8(bytes);
  if (invalid != std::string_view::npos) {
    throw BadRecord("invalid UTF-8", fmt::format("at byte {} of the record (0x{:02x})", invalid,
                                                 static_cast<unsigned char>(bytes[invalid])));
  }
}

}  // namespace fettle::data
