// SPDX-License-Identifier: Apache-2.0
/// Parquet files written by pyarrow (tests/golden/make_parquet.py), whole and broken.
#include "text/parquet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <sstream>

#include "base/error.h"
#include "text/golden.h"

namespace fettle::text {
namespace {

using nlohmann::ordered_json;

std::filesystem::path folder() {
  return golden::root() / "tests/golden/text/parquet";
}

std::vector<ordered_json> parse_lines(const std::string& lines) {
  std::vector<ordered_json> rows;
  std::istringstream in(lines);
  for (std::string line; std::getline(in, line);) {
    rows.push_back(ordered_json::parse(line));
  }
  return rows;
}

class Codec : public testing::TestWithParam<const char*> {};

TEST_P(Codec, GivesTheRows) {
  const auto expected = parse_lines(read_file(folder() / "rows.jsonl"));
  ParquetReader reader = ParquetReader::open(folder() / (std::string(GetParam()) + ".parquet"));
  EXPECT_EQ(reader.rows(), 25);
  std::vector<ordered_json> rows;
  for (std::string lines; reader.next_rows(lines);) {
    const auto some = parse_lines(lines);
    rows.insert(rows.end(), some.begin(), some.end());
  }
  ASSERT_EQ(rows.size(), expected.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i], expected[i]) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Codec, testing::Values("none", "snappy", "gzip", "zstd", "lz4", "brotli"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Parquet, KeepsTheOrderOfColumns) {
  ParquetReader reader = ParquetReader::open(folder() / "none.parquet");
  std::string lines;
  ASSERT_TRUE(reader.next_rows(lines));
  EXPECT_TRUE(lines.starts_with("{\"text\":\"row 0")) << lines.substr(0, 80);
}

TEST(Parquet, GivesALargeRowGroupInPieces) {
  for (const auto& [name, expected] : {std::pair{"many", 2500}, std::pair{"long", 6}}) {
    ParquetReader reader = ParquetReader::open(folder() / (std::string(name) + ".parquet"));
    std::vector<size_t> sizes;
    int next = 0;
    for (std::string lines; reader.next_rows(lines);) {
      sizes.push_back(0);
      for (const auto& row : parse_lines(lines)) {
        EXPECT_EQ(row["number"], next++);
        ++sizes.back();
      }
    }
    EXPECT_EQ(next, expected);
    EXPECT_EQ(reader.rows(), expected);
    EXPECT_EQ(sizes, next > 1024 ? std::vector<size_t>({1024, 1024, 452}) : std::vector<size_t>({3, 3}));
  }
}

TEST(Parquet, OfNoRowsHasNoRows) {
  ParquetReader reader = ParquetReader::open(folder() / "empty.parquet");
  EXPECT_EQ(reader.rows(), 0);
  size_t count = 0;
  for (std::string lines; reader.next_rows(lines);) {
    count += parse_lines(lines).size();
  }
  EXPECT_EQ(count, 0U);
}

TEST(Parquet, RefusesBinaryValues) {
  ParquetReader reader = ParquetReader::open(folder() / "binary.parquet");
  std::string lines;
  try {
    reader.next_rows(lines);
    FAIL() << lines;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kData);
    EXPECT_THAT(error.what(), testing::HasSubstr("column 'bytes'"));
  }
}

/// Reads everything; true if that worked, false for Error{kData}. Anything else fails the test.
bool reads(const std::filesystem::path& path) {
  try {
    ParquetReader reader = ParquetReader::open(path);
    for (std::string lines; reader.next_rows(lines);) {
    }
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kData) << error.what();
    EXPECT_THAT(error.what(), testing::HasSubstr(path.string()));
    return false;
  }
}

TEST(BrokenParquet, TruncatedAnywhereIsRefused) {
  const TemporaryFolder temporary;
  const std::string whole = read_file(folder() / "snappy.parquet");
  temporary.write("whole.parquet", whole);
  EXPECT_TRUE(reads(temporary.path() / "whole.parquet"));
  for (size_t size = 0; size < whole.size(); size += 97) {
    temporary.write("cut.parquet", whole.substr(0, size));
    EXPECT_FALSE(reads(temporary.path() / "cut.parquet")) << size;
  }
}

TEST(BrokenParquet, FlippedBitsNeverCrash) {
  const TemporaryFolder temporary;
  std::mt19937 random(1);
  for (const char* codec : {"none", "zstd", "gzip"}) {
    const std::string whole = read_file(folder() / (std::string(codec) + ".parquet"));
    for (int i = 0; i < 150; ++i) {
      std::string broken = whole;
      for (int k = 0; k < 3; ++k) {
        broken[random() % broken.size()] ^= static_cast<char>(1U << (random() % 8));
      }
      temporary.write("broken.parquet", broken);
      reads(temporary.path() / "broken.parquet");
    }
  }
}

TEST(BrokenParquet, MissingFileIsNamed) {
  try {
    (void)ParquetReader::open("no/such.parquet");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kNoInput);
    EXPECT_THAT(error.what(), testing::HasSubstr("no/such.parquet"));
  }
}

}  // namespace
}  // namespace fettle::text
