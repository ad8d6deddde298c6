// SPDX-License-Identifier: Apache-2.0
#include "data/preprocess.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "data/data_support.h"
#include "data/preview.h"

namespace fettle::data {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::ThrowsMessage;

class PreprocessTest : public testing::Test {
 protected:
  PreprocessTest() {
    config_.model.tokenizer_name = repository("examples/stories260K").string();
    config_.data = config_for(folder_.write("train.jsonl",
                                            "{\"instruction\": \"Say hello.\", \"output\": \"Hello é.\"}\n"
                                            "{\"instruction\": \"Nothing.\", \"output\": \"\"}\n"
                                            "{\"instruction\": \"Say bye.\", \"output\": \"Bye.\"}\n"),
                              folder_);
    config_.preprocess.output = (folder_.path() / "out.jsonl").string();
  }

  TemporaryFolder folder_;
  config::Config config_;
};

TEST_F(PreprocessTest, WritesTheDocumentsOfTraining) {
  EXPECT_EQ(preprocess(config_), 0);
  const TokenDataset train = prepare(config_.data, small_tokenizer(), true).train;
  const std::string written = read_file(config_.preprocess.output);
  std::vector<nlohmann::json> lines;
  for (size_t begin = 0; begin < written.size(); begin = written.find('\n', begin) + 1) {
    lines.push_back(nlohmann::json::parse(written.substr(begin, written.find('\n', begin) - begin)));
  }
  ASSERT_EQ(lines.size(), 2U);
  ASSERT_EQ(train.size(), 2);
  for (int64_t i = 0; i < 2; ++i) {
    const nlohmann::json& line = lines[static_cast<size_t>(i)];
    EXPECT_EQ(line["input_ids"], example_of(train, i).input_ids);
    EXPECT_EQ(line["labels"], example_of(train, i).labels);
    EXPECT_EQ(line["text"], small_tokenizer().decode(train.input_ids(i), false));
  }
  EXPECT_THAT(lines[0]["text"].get<std::string>(), testing::EndsWith("### Response:\nHello é.</s>"));
}

TEST_F(PreprocessTest, LeavesTheOldOutputWhenItFails) {
  const std::string old = R"({"text": "a", "input_ids": [1], "labels": [1]})"
                          "\n";
  write_file(config_.preprocess.output, old);
  folder_.write("train.jsonl", "{]");
  EXPECT_THROW(preprocess(config_), Error);
  EXPECT_EQ(read_file(config_.preprocess.output), old);
}

TEST_F(PreprocessTest, ReplacesOnlyItsOwnFiles) {
  const auto output = [this](const std::string& content) {
    write_file(config_.preprocess.output, content);
    preprocess(config_);
    return read_file(config_.preprocess.output);
  };
  const std::string written = output("");
  EXPECT_EQ(output(written), written);
  for (const std::string other : {"notes", "{}", R"({"text": "a", "labels": [1], "input_ids": [1]})",
                                  R"({"text": "a", "input_ids": [1], "labels": [1], "id": 3})"}) {
    EXPECT_THAT([&] { output(other); }, ThrowsMessage<Error>(HasSubstr("is not a file of fettle preprocess")));
    EXPECT_EQ(read_file(config_.preprocess.output), other);
  }
  config_.preprocess.output = folder_.path().string();
  EXPECT_THAT([&] { preprocess(config_); }, ThrowsMessage<Error>(HasSubstr("is not a file of")));
}

TEST_F(PreprocessTest, NeverReplacesAnInput) {
  preprocess(config_);
  const std::string tokenized = read_file(config_.preprocess.output);
  fs::create_symlink(config_.preprocess.output, folder_.path() / "link.jsonl");
  const std::string link = (folder_.path() / "link.jsonl").string();
  for (const bool train : {true, false}) {
    (train ? config_.data.train_file : config_.data.validation_file).assign(1, link);
    try {
      preprocess(config_);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      EXPECT_THAT(std::string(error.what()), HasSubstr("is the input"));
    }
    EXPECT_EQ(read_file(config_.preprocess.output), tokenized);
    config_.data.train_file = {(folder_.path() / "train.jsonl").string()};
  }
}

TEST_F(PreprocessTest, UnwritableOutput) {
  config_.preprocess.output = (folder_.path() / "no" / "such" / "folder.jsonl").string();
  try {
    preprocess(config_);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kNoInput);
    EXPECT_THAT(error.what(), HasSubstr("folder.jsonl"));
  }
  EXPECT_FALSE(fs::exists(config_.data.dataset_cache_directory)) << "found out only after the work";
}

TEST_F(PreprocessTest, LeavesNothingBesideTheOutput) {
  preprocess(config_);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_.path())) names.push_back(entry.path().filename().string());
  EXPECT_THAT(names, testing::UnorderedElementsAre("train.jsonl", "out.jsonl", "cache"));
}

TEST(PreviewTest, TargetsGreenContextGreySpecialBoldControlsVisible) {
  const auto encode = [](std::string_view text) { return chat_tokenizer().encode(text, false).ids; };
  Example example{encode("<|im_start|>user\nq\x1b[2J"), {}};
  example.labels.assign(example.input_ids.size(), kIgnore);
  for (const int32_t id : encode("yes<|im_end|>")) {
    example.input_ids.push_back(id);
    example.labels.push_back(id);
  }
  const std::string shown = preview(TokenDataset::from_examples({example}), chat_tokenizer(), 0);
  EXPECT_THAT(shown, testing::StartsWith("\x1b[90m\x1b[1m<|im_start|>\x1b[0m\x1b[90muser↵\nq\\x1b[2J\x1b[0m"
                                         "\x1b[32myes\x1b[0m\x1b[32m\x1b[1m<|im_end|>\x1b[0m\n"));
  EXPECT_THAT(shown, testing::HasSubstr("2 targets"));
}

}  // namespace
}  // namespace fettle::data
