// SPDX-License-Identifier: Apache-2.0
/// llama.cpp reads what these tests look at in tests/interop/test_gguf_export.py.
#include "text/gguf_vocabulary.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>

#include "base/error.h"
#include "text/golden.h"
#include "text/sentencepiece.h"

namespace fettle::text {
namespace {

using nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

GgufVocabulary vocabulary_of(const std::string& name, int64_t more = 0) {
  const Tokenizer tokenizer = Tokenizer::load(golden::tokenizer_folder(name));
  return make_gguf_vocabulary(tokenizer, tokenizer.vocab_size() + more);
}

GgufTokenType type_of(const GgufVocabulary& vocabulary, const std::string& token) {
  const auto found = std::ranges::find(vocabulary.tokens, token);
  EXPECT_NE(found, vocabulary.tokens.end()) << token;
  return static_cast<GgufTokenType>(vocabulary.types.at(static_cast<size_t>(found - vocabulary.tokens.begin())));
}

void expect_json_refused(const std::string& tokenizer_json, ExitCode code, const std::string& words) {
  const Tokenizer tokenizer = Tokenizer::from_files({.name = "test", .tokenizer_json = tokenizer_json});
  try {
    (void)make_gguf_vocabulary(tokenizer, std::max<int64_t>(300, tokenizer.vocab_size()));
    ADD_FAILURE() << "no error with: " << words;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(words));
  }
}

/// Where the model's scores of what is merged differ, ours do, in the same direction. (Llama 2's runs of spaces share
/// one score; the merges order them.)
void expect_same_order(const GgufVocabulary& vocabulary, const SentencePieceModel& model) {
  std::vector<std::pair<float, float>> scores;  // the model's, ours
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& piece = model.pieces[i];
    const auto characters = std::ranges::count_if(piece.text, [](char c) { return (c & 0xC0) != 0x80; });
    if (piece.type == SentencePieceModel::PieceType::kNormal && characters > 1) {
      scores.emplace_back(piece.score, vocabulary.scores[i]);
    }
  }
  std::ranges::sort(scores, std::greater<>());
  for (size_t i = 1; i < scores.size(); ++i) ASSERT_GT(scores[i - 1].second, scores[i].second) << i;
}

TEST(GgufVocabulary, OfSentencepieceHasThePiecesAndOrderOfTheModel) {
  for (const std::string name : {"llama2", "mistral-v3", "stories260K"}) {
    SCOPED_TRACE(name);
    const GgufVocabulary vocabulary = vocabulary_of(name, 2);
    const auto file = golden::tokenizer_folder(name) / "tokenizer.model";
    const SentencePieceModel model = parse_sentencepiece(read_file(file), file.string());
    EXPECT_EQ(vocabulary.model, "llama");
    EXPECT_EQ(vocabulary.pre, "default");
    EXPECT_EQ(vocabulary.add_space_prefix, name != "mistral-v3");
    EXPECT_EQ(vocabulary.prefix_is_inexact, name == "mistral-v3");
    EXPECT_THAT(vocabulary.merges, IsEmpty());
    ASSERT_EQ(vocabulary.tokens.size(), model.pieces.size() + 2);
    EXPECT_EQ(vocabulary.tokens.back(), fmt::format("[PAD{}]", model.pieces.size() + 1));
    EXPECT_EQ(vocabulary.types.back(), static_cast<int32_t>(GgufTokenType::kUnused));
    for (size_t i = 0; i < model.pieces.size(); ++i) {
      const auto& piece = model.pieces[i];
      ASSERT_EQ(vocabulary.tokens[i], piece.text);
      const bool added = piece.type == SentencePieceModel::PieceType::kControl ||
                         piece.type == SentencePieceModel::PieceType::kUnknown;
      ASSERT_EQ(static_cast<GgufTokenType>(vocabulary.types[i]), added ? GgufTokenType::kControl
                                                                 : piece.type == SentencePieceModel::PieceType::kByte
                                                                     ? GgufTokenType::kByte
                                                                     : GgufTokenType::kNormal)
          << piece.text;
    }
    expect_same_order(vocabulary, model);
  }
}

TEST(GgufVocabulary, KnowsTheNormalizerThatPutsSpaces) {
  TokenizerFiles files{.name = "test"};
  files.tokenizer_json = read_file(golden::tokenizer_folder("mistral-v3") / "tokenizer.json");
  files.model_type = "mistral";  // loaded as the file says
  const Tokenizer tokenizer = Tokenizer::from_files(files);
  const GgufVocabulary vocabulary = make_gguf_vocabulary(tokenizer, tokenizer.vocab_size());
  EXPECT_EQ(vocabulary.model, "llama");
  EXPECT_TRUE(vocabulary.add_space_prefix);
  EXPECT_FALSE(vocabulary.prefix_is_inexact);
}

TEST(GgufVocabulary, OfByteLevelBpeHasTheMergesAndNamesTheSplit) {
  const std::vector<std::pair<std::string, std::string>> expected = {
      {"gpt2", "gpt-2"}, {"smollm2", "gpt-2"}, {"llama3-style-4k", "llama-bpe"}, {"qwen3", "qwen2"}};
  for (const auto& [name, pre] : expected) {
    SCOPED_TRACE(name);
    ASSERT_EQ(golden::missing(name), "");
    const GgufVocabulary vocabulary = vocabulary_of(name);
    EXPECT_EQ(vocabulary.model, "gpt2");
    EXPECT_EQ(vocabulary.pre, pre);
    EXPECT_FALSE(vocabulary.add_space_prefix);
    EXPECT_THAT(vocabulary.scores, IsEmpty());
    const json file = json::parse(read_file(golden::tokenizer_folder(name) / "tokenizer.json"));
    const json& merges = file["model"]["merges"];
    ASSERT_EQ(vocabulary.merges.size(), merges.size());
    for (size_t i = 0; i < merges.size(); ++i) {
      const json& merge = merges[i];
      ASSERT_EQ(vocabulary.merges[i], merge.is_string()
                                          ? merge.get<std::string>()
                                          : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    }
    for (const auto& [token, id] : file["model"]["vocab"].items()) {
      ASSERT_EQ(vocabulary.tokens[id.get<size_t>()], token);
    }
  }
}

TEST(GgufVocabulary, TypesAddedTokensAsLlamaCppsConverter) {
  const GgufVocabulary qwen = vocabulary_of("qwen3", 3);
  EXPECT_EQ(type_of(qwen, "<|im_end|>"), GgufTokenType::kControl);
  EXPECT_EQ(type_of(qwen, "<|fim_prefix|>"), GgufTokenType::kControl);  // "special": false
  EXPECT_EQ(type_of(qwen, "<tool_call>"), GgufTokenType::kUserDefined);
  EXPECT_EQ(type_of(qwen, "Ġthe"), GgufTokenType::kNormal);
  EXPECT_EQ(type_of(qwen, "[PAD151671]"), GgufTokenType::kUnused);
}

/// A byte-level tokenizer with other parts.
std::string byte_level(const json& changes, const json& model_changes = json::object()) {
  json definition = {{"version", "1.0"},
                     {"added_tokens", json::array()},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}}},
                     {"post_processor", nullptr},
                     {"decoder", nullptr},
                     {"model", {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}}, {"merges", {"a b"}}}}};
  definition.update(changes);
  definition["model"].update(model_changes);
  return definition.dump();
}

TEST(GgufVocabulary, RefusesWhatLlamaCppCannotSplit) {
  EXPECT_EQ(
      make_gguf_vocabulary(Tokenizer::from_files({.name = "test", .tokenizer_json = byte_level(json::object())}), 3)
          .pre,
      "gpt-2");
  const auto refuse = [](const json& changes, const std::string& words) {
    expect_json_refused(byte_level(changes), ExitCode::kConfig, words);
  };
  refuse({{"pre_tokenizer", nullptr}}, "pre_tokenizer null has no counterpart in llama.cpp");
  refuse({{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}}}},
         "\"add_prefix_space\":true");
  refuse({{"pre_tokenizer",
           {{"type", "Split"}, {"pattern", {{"Regex", "."}}}, {"behavior", "Isolated"}, {"invert", false}}}},
         "pre_tokenizer {");
  refuse({{"normalizer", {{"type", "Lowercase"}}}}, "normalizer {\"type\":\"Lowercase\"} has no counterpart");
  refuse({{"model", {{"type", "WordLevel"}, {"vocab", {{"a", 0}}}, {"unk_token", "a"}}}}, "model type 'WordLevel'");
  expect_json_refused(byte_level(json::object(), {{"ignore_merges", true}}), ExitCode::kConfig,
                      "with ignore_merges has no counterpart");
  expect_json_refused(byte_level(json::object(), {{"dropout", 0.5}}), ExitCode::kConfig, "dropout");
  expect_json_refused(byte_level(json::object(), {{"end_of_word_suffix", "</w>"}}), ExitCode::kConfig,
                      "end_of_word_suffix '</w>'");
  expect_json_refused(byte_level(json::object(), {{"byte_fallback", true}}), ExitCode::kConfig, "pre_tokenizer {");
}

TEST(GgufVocabulary, NormalizesToNfcLikeQwen) {
  const Tokenizer tokenizer =
      Tokenizer::from_files({.name = "test", .tokenizer_json = byte_level({{"normalizer", {{"type", "NFC"}}}})});
  EXPECT_EQ(make_gguf_vocabulary(tokenizer, 3).pre, "gpt-2");
}

TEST(GgufVocabulary, RefusesTokensThatEndLlamaCpp) {
  const json added = {{"id", 3},         {"content", "▁"},      {"single_word", false}, {"lstrip", false},
                      {"rstrip", false}, {"normalized", false}, {"special", false}};
  json space = added;
  space["id"] = 4;
  space["content"] = " ";
  expect_json_refused(byte_level({{"added_tokens", json::array({added, space})}}), ExitCode::kData,
                      "the tokenizer has two tokens ' '");
  const Tokenizer tokenizer = Tokenizer::load(golden::tokenizer_folder("stories260K"));
  EXPECT_THROW((void)make_gguf_vocabulary(tokenizer, tokenizer.vocab_size() - 1), Error);
}

/// A sentencepiece tokenizer with all bytes; its own pieces follow from id 256 on.
std::string sentencepiece(const std::vector<std::string>& pieces, const json& merges) {
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[fmt::format("<0x{:02X}>", byte)] = byte;
  for (size_t i = 0; i < pieces.size(); ++i) vocab[pieces[i]] = 256 + i;
  const json metaspace = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "never"}, {"split", false}};
  return byte_level({{"pre_tokenizer", metaspace}}, {{"byte_fallback", true}, {"vocab", vocab}, {"merges", merges}});
}

TEST(GgufVocabulary, ScoresTokensInTheOrderOfTheirMerges) {
  const Tokenizer tokenizer = Tokenizer::from_files(
      {.name = "test",
       .tokenizer_json = sentencepiece({"a", "b", "bc", "c", "abc", "ab"}, {"b c", "a b", "a bc", "ab c"})});
  const GgufVocabulary vocabulary = make_gguf_vocabulary(tokenizer, 262);
  EXPECT_FALSE(vocabulary.add_space_prefix);
  const std::vector<float> scores(vocabulary.scores.begin() + 256, vocabulary.scores.end());
  EXPECT_THAT(scores, ElementsAre(-3, -4, 0, -5, -2, -1));
}

TEST(GgufVocabulary, PutsTheSpaceWhereTheTokenizerDoesInChats) {
  const auto prefix = [](const std::string& scheme, const std::string& config) {
    json definition = json::parse(sentencepiece({"a"}, json::array()));
    definition["pre_tokenizer"]["prepend_scheme"] = scheme;
    const Tokenizer tokenizer =
        Tokenizer::from_files({.name = "test", .tokenizer_json = definition.dump(), .tokenizer_config = config});
    const GgufVocabulary vocabulary = make_gguf_vocabulary(tokenizer, 257);
    return std::pair(vocabulary.add_space_prefix, vocabulary.prefix_is_inexact);
  };
  const std::string chat = R"({"chat_template": "{{ messages }}"})";
  EXPECT_EQ(prefix("always", "{}"), std::pair(true, false));
  EXPECT_EQ(prefix("always", chat), std::pair(true, false));
  EXPECT_EQ(prefix("never", "{}"), std::pair(false, false));
  EXPECT_EQ(prefix("first", "{}"), std::pair(true, true));
  EXPECT_EQ(prefix("first", chat), std::pair(false, true));
}

TEST(GgufVocabulary, RefusesMergesThatNoScoresGive) {
  const auto refuse = [](const std::vector<std::string>& pieces, const json& merges, ExitCode code,
                         const std::string& words) { expect_json_refused(sentencepiece(pieces, merges), code, words); };
  const std::string order = "order of merges (see 'abc'), which is not that of a sentencepiece model,";
  refuse({"a", "b", "c", "ab", "bc", "abc"}, {"a b", "b c", "ab c"}, ExitCode::kConfig, order);  // a bc is missing
  refuse({"a", "b", "c", "ab", "bc", "abc"}, {"a b", "ab c", "b c", "a bc"}, ExitCode::kConfig, order);
  json without_a_byte = json::parse(sentencepiece({"a"}, json::array()));
  without_a_byte["model"]["vocab"].erase("<0x0A>");
  expect_json_refused(without_a_byte.dump(), ExitCode::kData, "no token <0x0A>");
}

}  // namespace
}  // namespace fettle::text
