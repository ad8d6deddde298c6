// SPDX-License-Identifier: Apache-2.0
#include "data/reader.h"

#include <gmock/gmock.h>

#include "base/utf8.h"
#include "data/data_support.h"

namespace fettle::data {
namespace {

using testing::ElementsAre;

std::vector<std::string> texts_of(FileFormat format, std::string_view bytes, const std::string& sample_by = "line") {
  config::DataConfig config;
  config.sample_by = sample_by;
  const auto reader = open_records(format, bytes, config);
  std::vector<std::string> texts;
  for (RawRecord raw; reader->next(raw);) texts.push_back(reader->parse(raw).at("text"));
  return texts;
}

std::vector<int64_t> lines_of(FileFormat format, std::string_view bytes) {
  const auto reader = open_records(format, bytes, {});
  std::vector<int64_t> lines;
  for (RawRecord raw; reader->next(raw);) lines.push_back(raw.line);
  return lines;
}

TEST(ReaderTest, JsonArrayInAnyLayout) {
  EXPECT_THAT(texts_of(FileFormat::kJson, R"([{"text":"a"},{"text":"b"}])"), ElementsAre("a", "b"));
  EXPECT_THAT(
      texts_of(FileFormat::kJson, "\xEF\xBB\xBF\r\n[\r\n {\"text\": \"]},{\"}\r\n ,\r\n{\"text\":\"\\\"\\\\\"}]\r\n"),
      ElementsAre("]},{", "\"\\"));
  EXPECT_THAT(lines_of(FileFormat::kJson, "[\n{\"a\":\n1},\n\n{\"a\":2}, {\"a\":3}\n]"), ElementsAre(2, 5, 5));
}

TEST(ReaderTest, JsonArrayOfStringsIsText) {
  EXPECT_THAT(texts_of(FileFormat::kJson, R"(["one", "two"])"), ElementsAre("one", "two"));
}

TEST(ReaderTest, JsonObjectAroundTheRecords) {
  EXPECT_THAT(texts_of(FileFormat::kJson, R"({"version": 1, "data": [{"text":"a"}], "more": [{"text":"x"}]})"),
              ElementsAre("a"));
  EXPECT_THAT(texts_of(FileFormat::kJson, "{\"rows\":\n [{\"text\":\"a\"}, {\"text\":\"b\"}]}\n"),
              ElementsAre("a", "b"));
}

TEST(ReaderTest, JsonObjectThatIsARecord) {
  config::DataConfig config;
  for (const std::string column : {"messages", "conversations", "dialog", "data"}) {
    if (column == "dialog") config.messages_column = column;
    if (column == "data") config.conversations_column = column;
    const std::string bytes = "{\n \"" + column + "\": [{\"role\": \"user\"}]\n}\n";
    const auto reader = open_records(FileFormat::kJson, bytes, config);
    RawRecord raw;
    ASSERT_TRUE(reader->next(raw));
    EXPECT_EQ(reader->parse(raw).at(column).size(), 1U);
    EXPECT_FALSE(reader->next(raw));
  }
}

TEST(ReaderTest, JsonLinesUnderEitherName) {
  constexpr std::string_view lines = "{\"text\":\"a\"}\r\n\r\n  {\"text\":\"b\"}  \n{\"text\":\"c\"}";
  EXPECT_THAT(texts_of(FileFormat::kJson, lines), ElementsAre("a", "b", "c"));
  EXPECT_THAT(texts_of(FileFormat::kJsonLines, lines), ElementsAre("a", "b", "c"));
  EXPECT_THAT(lines_of(FileFormat::kJsonLines, lines), ElementsAre(1, 3, 4));
}

TEST(ReaderTest, JsonKeepsTheOrderOfKeysAndTheLastOfTwins) {
  const Record record = parse_json_record(R"({"z": 1, "a": 2, "z": 3})");
  EXPECT_EQ(record.dump(), R"({"z":3,"a":2})");
}

TEST(ReaderTest, JsonAtTheDepthLimit) {
  const std::string deepest = R"({"text": "a", "x": )" + std::string(63, '[') + std::string(63, ']') + "}";
  EXPECT_NO_THROW(parse_json_record(deepest));
}

TEST(ReaderTest, TenMegabytesInALine) {
  const std::string big(10 << 20, 'x');
  const auto texts = texts_of(FileFormat::kJsonLines, "{\"text\":\"" + big + "\"}\n{\"text\":\"b\"}");
  ASSERT_EQ(texts.size(), 2U);
  EXPECT_EQ(texts[0].size(), big.size());
}

TEST(ReaderTest, CsvQuotesBreaksAndLineEndings) {
  constexpr std::string_view csv =
      "\xEF\xBB\xBFid,text\r\n"
      "1,plain\r\n"
      "\r\n"
      "2,\"with \"\"quotes\"\", a comma\r\nand a break\"\r\n"
      "3,in \"the\" middle\n"
      "4,\n"
      "5,\"\"";
  EXPECT_THAT(texts_of(FileFormat::kCsv, csv),
              ElementsAre("plain", "with \"quotes\", a comma\r\nand a break", "in \"the\" middle", "", ""));
  EXPECT_THAT(lines_of(FileFormat::kCsv, csv), ElementsAre(2, 4, 6, 7, 8));
}

TEST(ReaderTest, CsvNamesTheIndexColumn) {
  const auto reader = open_records(FileFormat::kCsv, ",text\n0,a\n", {});
  RawRecord raw;
  ASSERT_TRUE(reader->next(raw));
  EXPECT_EQ(reader->parse(raw).dump(), R"({"Unnamed: 0":"0","text":"a"})");
}

TEST(ReaderTest, TextByLineParagraphAndDocument) {
  constexpr std::string_view text = "one\r\ntwo\r\n\r\n\r\n\r\nthree\n";
  EXPECT_THAT(texts_of(FileFormat::kText, text, "line"), ElementsAre("one", "two", "", "", "", "three"));
  EXPECT_THAT(texts_of(FileFormat::kText, text, "paragraph"), ElementsAre("one\ntwo", "three\n"));
  EXPECT_THAT(texts_of(FileFormat::kText, text, "document"), ElementsAre("one\ntwo\n\n\n\nthree\n"));
}

TEST(ReaderTest, EveryRecordOfTheRealFiles) {
  struct File {
    const char* path;
    int64_t records;
  };
  for (const auto& [path, records] : {File{"tests/data/datasets/dolly_finqa_500.jsonl", 500},
                                      {"tests/data/datasets/fastchat_dummy_sharegpt_400.json", 400},
                                      {"tests/data/datasets/glaive_toolcall_sharegpt_200.json", 200},
                                      {"tests/data/datasets/tatqa_dev_alpaca_1000.json", 1000},
                                      {"examples/data/medical_meadow_wikidoc_patient_2000.json", 2000},
                                      {"tests/data/datasets/wikitext2_raw_test.txt", 4358}}) {
    const auto reader = open_records(repository(path), {});
    int64_t count = 0;
    for (RawRecord raw; reader->next(raw); ++count) ASSERT_NO_THROW(reader->parse(raw)) << reader->place(raw);
    EXPECT_EQ(count, records) << path;
  }
}

TEST(ReaderTest, CountsWhatItGives) {
  for (const char* path : {"tests/golden/text/parquet/many.parquet", "tests/data/datasets/mlx_wikisql_valid.jsonl"}) {
    const auto reader = open_records(repository(path), {});
    int64_t given = 0;
    for (RawRecord raw; reader->next(raw);) EXPECT_EQ(raw.number, ++given);
    EXPECT_EQ(open_records(repository(path), {})->count(), given);
    EXPECT_GT(given, 99);
  }
}

TEST(ReaderTest, FromMemoryReportsTheFirstBadRecord) {
  int64_t seen = 0;
  const auto read = [&](std::string_view bytes) {
    read_records_from_memory(FileFormat::kJsonLines, bytes, [&](const Record&) { ++seen; });
  };
  read("{\"a\":1}\n{\"a\":2}\n");
  EXPECT_EQ(seen, 2);
  EXPECT_THROW(read("{\"a\":1}\nx\n{\"a\":2}\n"), Error);
  EXPECT_EQ(seen, 3);
}

/// No damage of one byte may crash a reader, or make it run on: every outcome is records or an Error.
TEST(ReaderTest, DamagedFilesEndInRecordsOrAnError) {
  const std::vector<std::pair<FileFormat, std::string>> files = {
      {FileFormat::kJson, R"([{"text": "a\"b", "n": [1, {"x": null}]}, {"text": "c"}])"},
      {FileFormat::kJson, R"({"data": [{"text": "a"}, {"text": "b"}], "k": "v"})"},
      {FileFormat::kJsonLines, "{\"text\": \"a\"}\n{\"text\": \"b\"}\n"},
      {FileFormat::kCsv, "id,text\n1,\"a\"\"b\"\n2,c\n"},
      {FileFormat::kText, "one\r\n\r\ntwo\n"}};
  for (const auto& [format, whole] : files) {
    for (size_t position = 0; position < whole.size(); ++position) {
      for (const char byte : {'"', '\\', '{', '}', '[', ']', ',', '\n', '\0', '\xff'}) {
        std::string damaged = whole;
        damaged[position] = byte;
        size_t records = 0;
        try {
          read_records_from_memory(format, damaged, [&](const Record&) { ++records; });
          read_records_from_memory(format, damaged.substr(0, position), [](const Record&) {});
        } catch (const Error& error) {
          EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(ExitCode::kData)) << error.what();
        }
        EXPECT_LE(records, damaged.size());
      }
    }
  }
}

TEST(Utf8Test, FindsTheFirstInvalidByte) {
  constexpr auto kValid = std::string_view::npos;
  EXPECT_EQ(find_invalid_utf8(""), kValid);
  EXPECT_EQ(find_invalid_utf8("plain ascii, longer than a word"), kValid);
  EXPECT_EQ(find_invalid_utf8("é€\xF0\x9F\x98\x80\xF4\x8F\xBF\xBF"), kValid);
  EXPECT_EQ(find_invalid_utf8("12345678\x80"), 8U);
  EXPECT_EQ(find_invalid_utf8("\xED\xA0\x80"), 0U);      // a surrogate
  EXPECT_EQ(find_invalid_utf8("a\xE0\x80\x80"), 1U);     // overlong
  EXPECT_EQ(find_invalid_utf8("\xF4\x90\x80\x80"), 0U);  // above U+10FFFF
  EXPECT_EQ(find_invalid_utf8("ab\xF0\x9F\x98"), 2U);    // cut off
}

}  // namespace
}  // namespace fettle::data
