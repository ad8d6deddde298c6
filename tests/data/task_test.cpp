// SPDX-License-Identifier: Apache-2.0
#include "data/task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "data/prompts.h"
#include "data/record.h"
#include "support/temporary_folder.h"

namespace fettle::data {
namespace {

using testing::HasSubstr;
using Ids = std::vector<int32_t>;

text::Tokenizer stories() {
  return text::Tokenizer::load(std::filesystem::path(FETTLE_SOURCE_DIR) / "examples/stories260K");
}

text::Tokenizer smollm() {
  return text::Tokenizer::load(std::filesystem::path(FETTLE_SOURCE_DIR) / "tests/data/tokenizers/smollm2");
}

TEST(EncodePair, MovesSpacesAtTheEndOfTheContext) {
  const auto tokenizer = stories();
  const auto expected = encode_pair(tokenizer, "Once upon", " a time");
  EXPECT_EQ(expected.first, tokenizer.encode("Once upon", true).ids);
  EXPECT_EQ(encode_pair(tokenizer, "Once upon ", "a time"), expected);
  Ids whole = expected.first;
  whole.insert(whole.end(), expected.second.begin(), expected.second.end());
  EXPECT_EQ(whole, tokenizer.encode("Once upon a time", true).ids);
  // No-break and ideographic spaces are white space to Python too; a letter is not.
  EXPECT_EQ(encode_pair(tokenizer, "Once\u00A0\u3000\n", "a").first, tokenizer.encode("Once", true).ids);
  EXPECT_EQ(encode_pair(tokenizer, "Onceà", "a").first, tokenizer.encode("Onceà", true).ids);
}

TEST(EncodePair, BeginsWithOneBos) {
  const auto tokenizer = stories();
  const int32_t bos = *tokenizer.bos_id();
  const std::string spelled = tokenizer.token(bos);
  EXPECT_EQ(encode_pair(tokenizer, "", "a time").first, Ids{bos});
  EXPECT_EQ(encode_pair(tokenizer, "", "a time").second, tokenizer.encode("a time", false).ids);
  EXPECT_EQ(encode_pair(tokenizer, "", spelled + "a time").first, Ids{bos});
  EXPECT_EQ(encode_pair(tokenizer, spelled + "Once", " a").first, tokenizer.encode(spelled + "Once", false).ids);
  EXPECT_EQ(encode_pair(smollm(), "Once", " a").first, smollm().encode("Once", false).ids);
}

Task read(const std::string& lines, int64_t longest = 512) {
  const TemporaryFolder folder;
  return read_task(folder.write("task.jsonl", lines), stories(), longest);
}

TEST(ReadTask, ReadsItems) {
  const Task task = read(R"({"context": "Once upon ", "choices": ["a time", "the hill"], "gold": 1, "id": "x"})");
  ASSERT_EQ(task.items.size(), 1u);
  EXPECT_EQ(task.items[0].gold, 1);
  EXPECT_EQ(task.items[0].choices[1], "the hill");
  const ScoredContinuation& choice = task.items[0].encodings[0];
  Ids whole = stories().encode("Once upon a time", true).ids;
  EXPECT_EQ(choice.continuation.back(), whole.back());
  whole.pop_back();
  EXPECT_EQ(choice.input, whole);
  EXPECT_EQ(task.truncated, 0);
}

TEST(ReadTask, CutsALongContextAtItsBeginning) {
  const Task task =
      read(R"({"context": "Once upon a time there was a dog", "choices": [" and", " a cat sat"], "gold": 0})", 5);
  EXPECT_EQ(task.truncated, 2);
  for (const ScoredContinuation& choice : task.items[0].encodings) EXPECT_EQ(choice.input.size(), 5u);
}

struct BadTask {
  const char* line;
  const char* message;
};

class RefusedTask : public testing::TestWithParam<BadTask> {};

TEST_P(RefusedTask, NamesTheLine) {
  const std::string good = R"({"context": "a", "choices": ["b", "c"], "gold": 0})";
  try {
    read(good + "\n" + GetParam().line, 4);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("task.jsonl:2"));
    EXPECT_THAT(error.what(), HasSubstr(GetParam().message));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Lines, RefusedTask,
    testing::Values(BadTask{R"({"context": "a", "choices": ["b", "c"]})", "no \"gold\""},
                    BadTask{R"({"context": "a", "choices": ["b", "c"], "gold": 2})", "counted from 0 to 1"},
                    BadTask{R"({"context": "a", "choices": ["b", "c"], "gold": -1})", "counted from 0 to 1"},
                    BadTask{R"({"context": "a", "choices": ["b", "c"], "gold": 0.5})", "not a whole number"},
                    BadTask{R"({"context": "a", "choices": ["b", "c"], "gold": "0"})", "not a whole number"},
                    BadTask{R"({"context": "a", "choices": ["b"], "gold": 0})", "at least two"},
                    BadTask{R"({"context": "a", "choices": ["b", ""], "gold": 0})", "choice 1 is empty"},
                    BadTask{R"({"context": "a", "choices": ["b", 3], "gold": 0})", "a number, not text"},
                    BadTask{R"({"context": "a", "choices": "b", "gold": 0})", "not a list"},
                    BadTask{R"({"choices": ["b", "c"], "gold": 0})", "no \"context\""},
                    BadTask{R"({"context": null, "choices": ["b", "c"], "gold": 0})", "null, not text"},
                    BadTask{R"({"context": "a", "choices": ["b", "c and d and e and f"], "gold": 0})",
                            "reads 4 at once"},
                    BadTask{R"([1])", ""}, BadTask{R"({"context": )", ""}));

TEST(ReadTask, RefusesAFileWithoutItems) {
  EXPECT_THROW(read(""), Error);
}

TEST(Characters, AreNotBytes) {
  EXPECT_EQ(characters(""), 0);
  EXPECT_EQ(characters("naïve 東京 🙂"), 10);
}

TEST(ReadPrompts, ReadsJsonLinesAndText) {
  const TemporaryFolder folder;
  EXPECT_EQ(read_prompts(folder.write("p.jsonl", "{\"prompt\": \"a\\nb\", \"id\": 1}\n{\"prompt\": \"c\"}\n")),
            (std::vector<std::string>{"a\nb", "c"}));
  EXPECT_EQ(read_prompts(folder.write("p.txt", "Once upon\nThe dog\n")),
            (std::vector<std::string>{"Once upon", "The dog"}));
}

TEST(ReadPrompts, NamesTheLineThatHasNone) {
  const TemporaryFolder folder;
  for (const char* line : {"{\"text\": \"a\"}", "{\"prompt\": 3}", "{\"prompt\": \"\"}", "{\"prompt\": null}", "{"}) {
    try {
      read_prompts(folder.write("p.jsonl", std::string("{\"prompt\": \"c\"}\n") + line));
      ADD_FAILURE() << line;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kData) << line;
      EXPECT_THAT(error.what(), HasSubstr("p.jsonl:2")) << line;
    }
  }
  EXPECT_THROW(read_prompts(folder.write("p.jsonl", "")), Error);
  EXPECT_THROW(read_prompts(folder.path() / "absent.jsonl"), Error);
}

}  // namespace
}  // namespace fettle::data
