// SPDX-License-Identifier: Apache-2.0
#include "text/parquet.h"

#include <utility>

#include "base/file.h"
#include "text/rust.h"

namespace fettle::text {

/// `handle` reads from `file`, so it is declared after it and freed before it.
struct ParquetReader::State {
  std::shared_ptr<const MappedFile> file;
  rust::ParquetHandle handle;
};

namespace {
constexpr const char* kHint = "check that the file was written and copied completely";
}

ParquetReader::ParquetReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
ParquetReader::ParquetReader(ParquetReader&&) noexcept = default;
ParquetReader& ParquetReader::operator=(ParquetReader&&) noexcept = default;
ParquetReader::~ParquetReader() = default;

ParquetReader ParquetReader::open(const std::filesystem::path& path) {
  auto state = std::make_unique<State>();
  state->file = MappedFile::open(path);
  const auto bytes = state->file->bytes();
  FettleParquet* handle = nullptr;
  rust::Buffer error;
  const int32_t status =
      fettle_parquet_new(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), &handle, error.out());
  rust::check(status, error, ExitCode::kData, path.string() + ": not a readable Parquet file", kHint);
  state->handle.reset(handle);
  return ParquetReader(std::move(state));
}

bool ParquetReader::next_rows(std::string& json_lines) {
  rust::Buffer rows;
  rust::Buffer error;
  int32_t more = 0;
  const int32_t status = fettle_parquet_next(state_->handle.get(), rows.out(), &more, error.out());
  rust::check(status, error, ExitCode::kData, state_->file->path().string(), kHint);
  json_lines = rows.string();
  return more != 0;
}

int64_t ParquetReader::rows() const {
  return fettle_parquet_rows(state_->handle.get());
}

}  // namespace fettle::text
