// SPDX-License-Identifier: Apache-2.0
#include "data/reader.h"
#include "text/parquet.h"

namespace fettle::data {
namespace {

class ParquetRecords final : public RecordReader {
 public:
  explicit ParquetRecords(const std::filesystem::path& path)
      : RecordReader(path.string()), reader_(text::ParquetReader::open(path)) {}

  bool next(RawRecord& record) override {
    while (rest_.empty()) {
      auto rows = std::make_shared<std::string>();
      if (!reader_.next_rows(*rows)) return false;
      rest_ = *rows;
      rows_ = std::move(rows);
    }
    const size_t end = std::min(rest_.find('\n'), rest_.size());
    record = RawRecord{rest_.substr(0, end), 0, ++number_, rows_};
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    return true;
  }

  int64_t count() override { return reader_.rows(); }

  [[nodiscard]] Record parse(const RawRecord& record) const override { return parse_json_record(record.bytes); }

 private:
  text::ParquetReader reader_;
  std::shared_ptr<const std::string> rows_;  // that `rest_` looks into
  std::string_view rest_;
  int64_t number_ = 0;
};

}  // namespace

std::unique_ptr<RecordReader> open_parquet(const std::filesystem::path& path) {
  return std::make_unique<ParquetRecords>(path);
}

}  // namespace fettle::data
