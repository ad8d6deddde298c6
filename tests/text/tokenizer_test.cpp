// SPDX-License-Identifier: Apache-2.0
/// Ids, decoded texts and special tokens against transformers (tests/golden/make_text.py), and broken files.
#include "text/tokenizer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/error.h"
#include "base/hash.h"
#include "text/golden.h"

namespace fettle::text {
namespace {

using nlohmann::ordered_json;

const ordered_json& goldens() {
  static const ordered_json loaded = golden::read("tokens.json");
  return loaded;
}

std::optional<int32_t> id_or_none(const ordered_json& value) {
  return value.is_null() ? std::nullopt : std::optional(value.get<int32_t>());
}

void expect_as_golden(const Tokenizer& tokenizer, const ordered_json& expected) {
  EXPECT_EQ(tokenizer.bos_id(), id_or_none(expected["named"]["bos"]));
  EXPECT_EQ(tokenizer.eos_id(), id_or_none(expected["named"]["eos"]));
  EXPECT_EQ(tokenizer.pad_id(), id_or_none(expected["named"]["pad"]));
  EXPECT_EQ(tokenizer.unk_id(), id_or_none(expected["named"]["unk"]));
  EXPECT_EQ(tokenizer.vocab_size(), expected["size"].get<int64_t>());
  const auto& strings = goldens()["strings"];
  ASSERT_EQ(expected["cases"].size(), strings.size());
  for (size_t i = 0; i < strings.size(); ++i) {
    const std::string text = strings[i];
    const auto& golden = expected["cases"][i];
    SCOPED_TRACE(ordered_json(text).dump());
    const auto ids = golden["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.encode(text, true).ids, ids);
    EXPECT_EQ(tokenizer.encode(text, false).ids, golden.value("bare", ids));
    EXPECT_EQ(tokenizer.decode(ids, false), golden.value("decoded", text));
    EXPECT_EQ(tokenizer.decode(ids, true), golden.value("decoded_skip", text));
  }
}

std::vector<std::string> first_lines(const std::string& file, size_t count) {
  std::ifstream in(golden::root() / "tests/data/datasets" / file);
  std::vector<std::string> lines;
  for (std::string line; lines.size() < count && std::getline(in, line);) {
    lines.push_back(line);
  }
  return lines;
}

void expect_real_texts_as_golden(const Tokenizer& tokenizer, const ordered_json& hashes) {
  size_t texts = 0;
  for (const auto& [file, hash] : hashes.items()) {
    std::string ids;
    for (const std::string& line : first_lines(file, goldens()["real_lines"])) {
      const auto encoding = tokenizer.encode(line, false);
      ids += fmt::format("{}\n", fmt::join(encoding.ids, " "));
      EXPECT_EQ(tokenizer.encode(SegmentedText{line, {{0, line.size()}}}, false).ids, encoding.ids) << line;
      ++texts;
    }
    EXPECT_EQ(sha256(ids), hash.get<std::string>()) << file;
  }
  EXPECT_GE(texts, 500U);
}

class RealTokenizer : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (const std::string why = golden::missing(GetParam()); !why.empty()) {
      GTEST_SKIP() << why;
    }
  }
};

TEST_P(RealTokenizer, IsAsInTransformers) {
  expect_as_golden(Tokenizer::load(golden::tokenizer_folder(GetParam())), goldens()["tokenizers"][GetParam()]);
}

TEST_P(RealTokenizer, GivesTheIdsOfTransformersForRealTexts) {
  expect_real_texts_as_golden(Tokenizer::load(golden::tokenizer_folder(GetParam())),
                              goldens()["tokenizers"][GetParam()]["real"]);
}

TEST_P(RealTokenizer, OffsetsCoverTheText) {
  const Tokenizer tokenizer = Tokenizer::load(golden::tokenizer_folder(GetParam()));
  for (const std::string text : goldens()["strings"]) {
    const Encoding encoding = tokenizer.encode(text, false);
    ASSERT_EQ(encoding.ids.size(), encoding.offsets.size());
    for (const Span& span : encoding.offsets) {
      ASSERT_LE(span.begin, span.end);
      ASSERT_LE(span.end, text.size());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RealTokenizer,
                         testing::Values("gpt2", "llama2", "llama3-style-4k", "mistral-v3", "qwen3", "smollm2",
                                         "stories260K"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(TokenizerVariants, AreAsInTransformers) {
  for (const auto& variant : goldens()["variants"]) {
    SCOPED_TRACE(variant["name"].get<std::string>());
    TemporaryFolder folder;
    const auto source = golden::root() / variant["from"].get<std::string>();
    for (const std::string file : variant["copied"]) {
      std::filesystem::copy(source / file, folder.path());
    }
    for (const auto& [file, content] : variant["written"].items()) {
      folder.write(file, content.dump());
    }
    const Tokenizer tokenizer = Tokenizer::load(folder.path());
    expect_as_golden(tokenizer, variant);
    expect_real_texts_as_golden(tokenizer, variant["real"]);
  }
}

TEST(Tokenizer, KnowsItsTokensAndFiles) {
  const Tokenizer tokenizer = Tokenizer::load(golden::tokenizer_folder("smollm2"));
  EXPECT_EQ(tokenizer.token_to_id("<|im_end|>"), 2);
  EXPECT_EQ(tokenizer.token_to_id("no such token"), std::nullopt);
  EXPECT_EQ(tokenizer.token(1), "<|im_start|>");
  EXPECT_TRUE(tokenizer.is_special(1));
  EXPECT_FALSE(tokenizer.is_special(tokenizer.encode("the", false).ids[0]));
  EXPECT_THROW((void)tokenizer.token(1 << 30), Error);
  EXPECT_THROW((void)tokenizer.decode(std::vector<int32_t>{-100}, false), Error);
  EXPECT_TRUE(tokenizer.has_chat_template());
  EXPECT_EQ(tokenizer.special_tokens()["bos_token"], "<|im_start|>");
  EXPECT_EQ(tokenizer.files().size(), 2U);
  EXPECT_EQ(tokenizer.fingerprint().size(), 64U);
  EXPECT_NE(tokenizer.fingerprint(), Tokenizer::load(golden::tokenizer_folder("llama2")).fingerprint());
  EXPECT_FALSE(Tokenizer::load(golden::tokenizer_folder("llama2")).files().empty());
}

TEST(Tokenizer, TakesTheChatTemplateFromWhereTransformersDoes) {
  TemporaryFolder folder;
  std::filesystem::copy(golden::tokenizer_folder("stories260K") / "tokenizer.json", folder.path());
  EXPECT_FALSE(Tokenizer::load(folder.path()).has_chat_template());
  folder.write("tokenizer_config.json",
               R"({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})");
  EXPECT_EQ(Tokenizer::load(folder.path()).chat_template(), "D");
  EXPECT_EQ(Tokenizer::load(folder.path()).tool_use_template(), "T");
  folder.write("chat_template.jinja", "J");
  EXPECT_EQ(Tokenizer::load(folder.path()).chat_template(), "J");
  EXPECT_EQ(Tokenizer::load(folder.path()).tool_use_template(), "");
  const std::string before = Tokenizer::load(folder.path()).fingerprint();
  std::filesystem::create_directory(folder.path() / "additional_chat_templates");
  folder.write("additional_chat_templates/tool_use.jinja", "U");
  EXPECT_EQ(Tokenizer::load(folder.path()).chat_template(), "J");
  EXPECT_EQ(Tokenizer::load(folder.path()).tool_use_template(), "U");
  EXPECT_NE(Tokenizer::load(folder.path()).fingerprint(), before);
}

TEST(Tokenizer, EncodesFromManyThreads) {
  const Tokenizer tokenizer = Tokenizer::load(golden::tokenizer_folder("llama3-style-4k"));
  const auto texts = first_lines("dolly_finqa_500.jsonl", 200);
  std::vector<std::vector<int32_t>> expected;
  for (const auto& text : texts) {
    expected.push_back(tokenizer.encode(text, true).ids);
  }
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (size_t k = 0; k < texts.size(); ++k) {
        wrong += tokenizer.encode(texts[k], true).ids != expected[k];
        wrong += tokenizer.encode(SegmentedText{"<|eot_id|>", {{0, 10}}}, false).ids.size() < 2;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, 0);
}

void expect_files_refused(const TokenizerFiles& files, ExitCode code, const std::string& words) {
  try {
    (void)Tokenizer::from_files(files);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_THAT(error.what(), testing::HasSubstr(words));
    EXPECT_THAT(error.what(), testing::Not(testing::HasSubstr("\n")));
  }
}

TEST(BrokenTokenizer, IsRefusedByName) {
  const std::string good = read_file(golden::tokenizer_folder("stories260K") / "tokenizer.json");
  TokenizerFiles files{.name = "some/folder", .tokenizer_json = good};
  EXPECT_NO_THROW((void)Tokenizer::from_files(files));
  for (const std::string& bad : {good.substr(0, good.size() / 2), std::string("[]"), std::string("{\"model\": {}}"),
                                 std::string("{\"model\": {\"type\": \"BPE\"}}"), std::string("\xff\xfe"),
                                 std::string(100000, '['), std::string("{}")}) {
    files.tokenizer_json = bad;
    expect_files_refused(files, ExitCode::kData, "some/folder: tokenizer.json");
  }
  files.tokenizer_json = good;
  files.tokenizer_config = "{\"bos_token\": ";
  expect_files_refused(files, ExitCode::kData, "tokenizer_config.json is not a JSON object");
  files.tokenizer_config = R"({"added_tokens_decoder": {"x": {"content": "<s>"}}})";
  expect_files_refused(files, ExitCode::kData, "bad id 'x'");
  expect_files_refused({.name = "some/folder"}, ExitCode::kNoInput, "neither tokenizer.json nor tokenizer.model");
  EXPECT_THROW((void)Tokenizer::load("no/such/folder"), Error);
}

TEST(BrokenTokenizer, AnEmptyFileIsNotTakenForAbsent) {
  const TemporaryFolder folder;
  std::filesystem::copy_file(golden::tokenizer_folder("stories260K") / "tokenizer.json", folder / "tokenizer.json");
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}) {
    const std::filesystem::path file = folder.write(name, "");
    try {
      (void)Tokenizer::load(folder.path());
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kData);
      EXPECT_THAT(error.what(), testing::HasSubstr(std::string(name) + " is empty"));
    }
    std::filesystem::remove(file);
  }
}

TEST(BrokenTokenizer, SentencePieceTruncatedAnywhereIsRefusedOrSmaller) {
  const std::string good = read_file(golden::tokenizer_folder("stories260K") / "tokenizer.model");
  for (size_t size = 1; size < good.size(); size += 37) {
    TokenizerFiles files{.name = "some/folder"};
    files.sentencepiece_model = good.substr(0, size);
    try {
      EXPECT_LE(Tokenizer::from_files(files).vocab_size(), 515);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kData) << error.what();
    }
  }
  for (const std::string& bad : {std::string("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), std::string(64, '\x80'),
                                 std::string("\x0a\x03\x0a\x01\xff", 5), std::string("\x0b")}) {
    expect_files_refused({.name = "some/folder", .sentencepiece_model = bad}, ExitCode::kData,
                         "some/folder: tokenizer.model");
  }
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  const Tokenizer tokenizer = Tokenizer::load(golden::tokenizer_folder("stories260K"));
  EXPECT_THROW((void)tokenizer.encode("a\xff", true), Error);
}

}  // namespace
}  // namespace fettle::text
