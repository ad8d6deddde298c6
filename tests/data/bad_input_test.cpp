// SPDX-License-Identifier: Apache-2.0
/// What a user is told about data that cannot be used: the exit code, and where in which words.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <ostream>

#include "data/data_support.h"

namespace fettle::data {
namespace {

struct BadInput {
  std::string name;
  std::string file;
  std::string content;
  ExitCode code;
  std::string message;  // part of what() or of the hint
  void (*change)(config::DataConfig&) = nullptr;
};

void PrintTo(const BadInput& input, std::ostream* out) {
  *out << input.name;
}

class BadInputTest : public testing::TestWithParam<BadInput> {};

TEST_P(BadInputTest, IsRefusedWithItsPlace) {
  const BadInput& input = GetParam();
  const TemporaryFolder folder;
  config::DataConfig config = config_for(folder.write(input.file, input.content), folder);
  if (input.change != nullptr) input.change(config);
  try {
    prepare(config, small_tokenizer(), true);
    FAIL() << "was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(input.code)) << error.what();
    EXPECT_THAT(std::string(error.what()) + "; " + error.hint(), testing::HasSubstr(input.message));
  }
}

using enum ExitCode;

std::string deep(int levels) {
  return R"({"text": "a", "x": )" + std::string(static_cast<size_t>(levels), '[') +
         std::string(static_cast<size_t>(levels), ']') + "}\n";
}

constexpr const char* kGood = "{\"text\": \"good\"}\n";

std::vector<BadInput> json_cases() {
  const std::string nul("{\"text\": \"a\0b\"}\n", 16);
  return {
      {"EmptyJson", "a.json", "", kData, "a.json holds no records"},
      {"EmptyJsonLines", "a.jsonl", "", kData, "a.jsonl holds no records"},
      {"OnlyWhite", "a.jsonl", " \n\n\t\n", kData, "holds no records"},
      {"EmptyArray", "a.json", "[]", kData, "holds no records"},
      {"EmptyArrayInData", "a.json", R"({"data": []})", kData, "holds no records"},
      {"OnlyByteOrderMark", "a.json", "\xEF\xBB\xBF", kData, "holds no records"},
      {"Utf16", "a.jsonl", std::string("\xFF\xFE{\0", 4), kData, "UTF-16"},
      {"Scalar", "a.json", "17", kData, "does not begin with '[' or '{'"},
      {"ArrayCutOff", "a.json", "[\n{\"text\": \"a\"},\n{\"text\": \"b", kData,
       "inside record 2, which begins in line 3"},
      {"ArrayNotClosed", "a.json", "[{\"text\": \"a\"}", kData, "a.json:1: the file ends where ',' or ']'"},
      {"ArrayOnlyOpened", "a.json", "[", kData, "ends inside record 1"},
      {"ArrayCommaMissing", "a.json", "[{\"text\": \"a\"}\n{\"text\": \"b\"}]", kData, "a.json:2: ',' or ']'"},
      {"ArrayTrailingComma", "a.json", "[{\"text\": \"a\"},\n]", kData, "a.json:2: a record was expected"},
      {"ArrayAndMore", "a.json", "[{\"text\": \"a\"}] x", kData, "something follows"},
      {"ArrayOfNumbers", "a.json", "[1, 2]", kData, "not an object: the record is a number"},
      {"ArrayOfArrays", "a.json", "[[1], [2]]", kData, "the record is a list"},
      {"ArrayNull", "a.json", "[{\"text\": \"a\"}, null]", kData, "the record is null"},
      {"ObjectsOverLines", "a.json", "{\n\"text\": \"a\"\n}\n{\n\"text\": \"b\"\n}\n", kData,
       "several objects that span lines"},
      {"LineMalformed", "a.jsonl", std::string(kGood) + "{\"text\": }\n", kData,
       "a.jsonl:2: malformed JSON: at byte 10"},
      {"LineCutOff", "a.jsonl", std::string(kGood) + kGood + "{\"text\": \"b", kData, "a.jsonl:3: malformed JSON"},
      {"TwoOnALine", "a.jsonl", "{\"text\": \"a\"} {\"text\": \"b\"}\n", kData, "a.jsonl:1: malformed JSON"},
      {"SingleQuotes", "a.jsonl", "{'text': 'a'}\n", kData, "malformed JSON: at byte 2"},
      {"NotANumber", "a.jsonl", "{\"text\": NaN}\n", kData,
       "a.jsonl:1: malformed JSON: at byte 10 of the record: NaN is not JSON (Python's json.dump writes it for a "
       "missing "
       "value); write null or \"\""},
      {"MinusInfinity", "a.jsonl", "{\"text\": -Infinity}\n", kData, "Infinity is not JSON"},
      {"ControlsInMessages", "a.jsonl", "{\"text\": \"a\x7f\n", kData, "last read: '\"a '; correct the record"},
      {"LongStringInMessages", "a.jsonl", "{\"text\": \"" + std::string(1000, 'b'), kData, "bbb; correct the record"},
      {"LoneSurrogate", "a.jsonl", "{\"text\": \"\\ud800\"}\n", kData, "malformed JSON"},
      {"Nul", "a.jsonl", nul, kData, "a.jsonl:1: NUL byte: at byte 11"},
      {"InvalidUtf8", "a.jsonl", std::string(kGood) + "{\"text\": \"a\xff\"}\n", kData,
       "a.jsonl:2: invalid UTF-8: at byte 11 of the record (0xff)"},
      {"OverlongUtf8", "a.jsonl", "{\"text\": \"\xc0\xaf\"}\n", kData, "invalid UTF-8: at byte 10"},
      {"CutCharacter", "a.jsonl", "{\"text\": \"\xe2\x82\"}\n", kData, "invalid UTF-8: at byte 10"},
      {"TooDeep", "a.jsonl", deep(64), kData, "a.jsonl:1: nested too deeply: more than 64 levels"},
      {"FarTooDeep", "a.jsonl", deep(1000000), kData, "nested too deeply"},
  };
}

std::vector<BadInput> other_file_cases() {
  return {
      {"EmptyCsv", "a.csv", "", kData, "a.csv holds no records"},
      {"HeaderOnlyCsv", "a.csv", "text\n", kData, "a.csv holds no records"},
      {"CsvQuoteOpen", "a.csv", "text\nok\n\"never closed\n\n", kData, "a.csv:3: a quote in this row is never closed"},
      {"CsvTooFew", "a.csv", "instruction,output\na,b\nc\n", kData, "a.csv:3: wrong number of CSV fields: 1 where"},
      {"CsvTooMany", "a.csv", "instruction,output\na,b,c\n", kData, "a.csv:2: wrong number of CSV fields: 3"},
      {"CsvAfterQuote", "a.csv", "text\n\"a\"b\n", kData, "a.csv:2: malformed CSV: text after a closing quote"},
      {"CsvTwiceNamed", "a.csv", "text,text\na,b\n", kData, "column 'text' comes twice"},
      {"CsvInvalidUtf8", "a.csv", "text\n\xe9\n", kData, "a.csv:2: invalid UTF-8: at byte 0"},
      {"CsvHeaderUtf8", "a.csv", "t\xe9xt\na\n", kData, "a.csv:1: header row: invalid UTF-8"},
      {"CsvLinesCounted", "a.csv", "instruction,output\n\"a\n\nb\",c\nd\n", kData, "a.csv:5: wrong number"},
      {"EmptyText", "a.txt", "", kData, "a.txt holds no records"},
      {"BlankText", "a.txt", "\n \n\n", kData, "none of 3 train records gives anything to learn (empty × 3)"},
      {"TextNul", "a.txt", std::string("ab\ncd\0e\n", 8), kData, "a.txt:2: NUL byte: at byte 2"},
      {"TextUtf8", "a.txt", "ab\n\xc3(\n", kData, "a.txt:2: invalid UTF-8"},
      {"EmptyParquet", "a.parquet", "", kData, "a.parquet"},
      {"FalseParquet", "a.parquet", "PAR1 and no more", kData, "a.parquet"},
      {"Extension", "a.xml", "<a/>", kUsage, "use .json, .jsonl, .csv, .txt or .parquet"},
  };
}

std::vector<BadInput> column_option_cases() {
  return {
      {"ColumnOption", "a.jsonl", R"({"instruction": "a", "output": "b"})", kData,
       "output_column is 'answer', and the record has: 'instruction', 'output'; correct output_column",
       [](auto& c) { c.output_column = "answer"; }},
      {"ColumnOptionOfAnotherFormat", "a.jsonl", R"({"text": "a"})", kData, "instruction_column is 'question'",
       [](auto& c) { c.instruction_column = "question"; }},
  };
}

std::vector<BadInput> column_cases() {
  return {
      {"Columns", "a.jsonl", R"({"question": "a", "answer": "b"})", kData,
       "a.jsonl:1: no known format has these columns: 'question', 'answer'"},
      {"ColumnsControls", "a.jsonl", R"({"a\nb\u001b[2J": 1})", kData, "these columns: 'a b [2J'"},
      {"ColumnsNoneFits", "a.jsonl", "{\"a\": 1}\n{]\n{\"b\": 1}\n", kData,
       "a.jsonl:1: no known format has these columns: 'a' (the first of 3 records, none of which fits)",
       [](auto& c) { c.on_bad_record = "skip"; }},
      {"ColumnsHint", "a.jsonl", R"({"question": "a", "answer": "b"})", kData, "instruction_column"},
      {"FormatColumns", "a.jsonl", R"({"text": "a"})", kData,
       "dataset_format alpaca needs the columns instruction, output; the record has: 'text'",
       [](auto& c) { c.dataset_format = "alpaca"; }},
      {"FormatName", "a.jsonl", R"({"text": "a"})", kUsage, "dataset_format: 'alpca' is not known",
       [](auto& c) { c.dataset_format = "alpca"; }},
      {"LaterColumn", "a.jsonl", "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": \"a\"}", kData,
       "a.jsonl:2: column 'output' is missing"},
      {"NumberAsText", "a.jsonl", R"({"instruction": "a", "output": 3})", kData,
       "a.jsonl:1: column 'output' is a number, not text"},
      {"ListAsText", "a.jsonl", R"({"text": ["a"]})", kData, "column 'text' is a list, not text"},
      {"AllEmpty", "a.jsonl", R"({"instruction": "a", "output": null})", kData, "empty answer × 1"},
      {"IdsText", "a.jsonl", R"({"input_ids": "1 2"})", kData, "column 'input_ids' is text, not a list"},
      {"IdsReal", "a.jsonl", R"({"input_ids": [1, 2.5]})", kData, "not a 32-bit integer: '2.5'"},
      {"IdsHuge", "a.jsonl", R"({"input_ids": [1, 4294967297]})", kData, "not a 32-bit integer"},
      {"LabelsWrap", "a.jsonl", R"({"input_ids": [1, 2], "labels": [1, 18446744073709551516]})", kData,
       "column 'labels' holds something that is not a 32-bit integer: '18446744073709551516'"},
      {"IdsUnknown", "a.jsonl", R"({"input_ids": [1, 600]})", kData, "600 at position 1; it has 512"},
      {"IdsNegative", "a.jsonl", R"({"input_ids": [1, -100]})", kData, "-100 at position 1"},
      {"LabelsUnknown", "a.jsonl", R"({"input_ids": [1, 2], "labels": [-100, 512]})", kData, "512 at position 1"},
      {"LabelsLength", "a.jsonl", R"({"input_ids": [1, 2], "labels": [1]})", kData,
       "'labels' and input_ids differ in length: 1 and 2"},
      {"LabelsMasked", "a.jsonl", R"({"input_ids": [1, 2], "labels": [-100, -100]})", kData, "no target tokens × 1"},
      {"LabelFirstOnly", "a.jsonl", R"({"input_ids": [1, 2], "labels": [1, -100]})", kData, "no target tokens × 1"},
      {"IdsEmpty", "a.jsonl", R"({"input_ids": []})", kData, "empty × 1"},
      {"PromptFillsAll", "a.jsonl", R"({"instruction": "a", "output": "b"})", kData,
       "no target tokens within max_seq_length × 1", [](auto& c) { c.max_seq_length = 8; }},
      {"OneRecordSplit", "a.jsonl", kGood, kData, "1 record cannot be split",
       [](auto& c) { c.validation_split_percentage = 20; }},
      {"SplitTakesAll", "a.jsonl", kGood, kConfig, "leaves nothing to train on",
       [](auto& c) { c.validation_split_percentage = 100; }},
      {"NoChatTemplate", "a.jsonl",
       R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})", kConfig,
       "cannot show conversations"},
      {"ChatWithoutOne", "a.jsonl", kGood, kConfig, "the tokenizer has no chat template",
       [](auto& c) { c.prompt_template = "chat"; }},
      {"TemplateName", "a.jsonl", kGood, kUsage, "'alpakka' is neither known nor a file",
       [](auto& c) { c.prompt_template = "alpakka"; }},
      {"SampleBy", "a.txt", "a\n", kUsage, "sample_by: 'word' is not known", [](auto& c) { c.sample_by = "word"; }},
      {"NoSuchFile", "a.jsonl", kGood, kNoInput, "b.jsonl",
       [](auto& c) { c.train_file = {c.train_file[0].substr(0, c.train_file[0].size() - 7) + "b.jsonl"}; }},
      {"NoData", "a.jsonl", kGood, kConfig, "set train_file", [](auto& c) { c.train_file.clear(); }},
      {"NoFolder", "a.jsonl", kGood, kNoInput, "'/no/such' is neither a folder nor a hub name",
       [](auto& c) {
         c.train_file.clear();
         c.dataset_name = "/no/such";
       }},
  };
}

std::vector<BadInput> message_cases() {
  const auto llama2 = [](config::DataConfig& c) { c.prompt_template = "llama2"; };
  return {
      {"MessagesText", "a.jsonl", R"({"messages": "hello"})", kData, "column 'messages' is text, not a list", llama2},
      {"MessagesStrings", "a.jsonl", R"({"messages": ["hello"]})", kData, "holds something other than messages",
       llama2},
      {"MessagesEmpty", "a.jsonl", R"({"messages": []})", kData, "empty × 1", llama2},
      {"NoRole", "a.jsonl", R"({"messages": [{"content": "a"}]})", kData, "a message has no role", llama2},
      {"ContentNumber", "a.jsonl", R"({"messages": [{"role": "user", "content": 1}]})", kData, "content is a number",
       llama2},
      {"Image", "a.jsonl", R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})", kData,
       "something other than text", llama2},
      {"NoAssistant", "a.jsonl", R"({"messages": [{"role": "user", "content": "a"}]})", kData, "no assistant turn × 1",
       llama2},
      {"TemplateRefuses", "a.jsonl", R"({"messages": [{"role": "assistant", "content": "a"}]})", kData,
       "the roles user and assistant in turn", llama2},
      {"Speaker", "a.jsonl", R"({"conversations": [{"from": "alien", "value": "a"}]})", kData,
       "a message is from an unknown speaker: 'alien'", llama2},
      {"SpeakerNull", "a.jsonl", R"({"conversations": [{"from": null, "value": "a"}]})", kData, "'from' is not text",
       llama2},
      {"NoValue", "a.jsonl", R"({"conversations": [{"from": "human"}]})", kData, "a message has no 'value'", llama2},
      {"CallNotJson", "a.jsonl", R"({"conversations": [{"from": "function_call", "value": "f[x]"}]})", kData,
       "a function_call is not JSON", llama2},
      {"ToolsNotJson", "a.jsonl", R"({"tools": "[{", "messages": [{"role": "user", "content": "a"}]})", kData,
       "column 'tools' is not JSON", llama2},
      {"PromptNotPaired", "a.jsonl", R"({"prompt": [{"role": "user", "content": "a"}], "completion": "b"})", kData,
       "column 'completion' is text, not a list", llama2},
  };
}

std::string name_of(const testing::TestParamInfo<BadInput>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Json, BadInputTest, testing::ValuesIn(json_cases()), name_of);
INSTANTIATE_TEST_SUITE_P(Files, BadInputTest, testing::ValuesIn(other_file_cases()), name_of);
INSTANTIATE_TEST_SUITE_P(Columns, BadInputTest, testing::ValuesIn(column_cases()), name_of);
INSTANTIATE_TEST_SUITE_P(ColumnOptions, BadInputTest, testing::ValuesIn(column_option_cases()), name_of);
INSTANTIATE_TEST_SUITE_P(Messages, BadInputTest, testing::ValuesIn(message_cases()), name_of);

}  // namespace
}  // namespace fettle::data
