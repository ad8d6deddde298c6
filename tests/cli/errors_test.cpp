// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace fettle::cli {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

struct BadRecords {
  const char* name;
  const char* content;
  ExitCode code;
  const char* message;
};

class BadData : public testing::TestWithParam<BadRecords> {};

TEST_P(BadData, IsOneLineThatSaysWhatAndWhere) {
  const TemporaryFolder folder;
  const std::string file = folder.write("train.jsonl", GetParam().content);
  const Result result = run_program(train_arguments(folder / "out", file));
  EXPECT_EQ(result.code, code(GetParam().code)) << result.err;
  EXPECT_THAT(result.error(), HasSubstr(GetParam().message));
  EXPECT_THAT(result.error(), HasSubstr("; ")) << "a hint is missing";
  EXPECT_FALSE(fs::exists(folder / "out")) << "nothing may be written before the data is known to be good";
}

INSTANTIATE_TEST_SUITE_P(
    Train, BadData,
    testing::Values(
        BadRecords{"Empty", "", ExitCode::kData, "train.jsonl"},
        BadRecords{"BrokenLine", "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\", \"compl\n",
                   ExitCode::kData, "2"},
        BadRecords{"WrongColumns", "{\"question\": \"a\", \"answer\": \"b\"}\n", ExitCode::kData, "question"},
        BadRecords{"AllMasked",
                   "{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, -100]}\n"
                   "{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, -100]}\n",
                   ExitCode::kData, "target"}),
    [](const auto& test) { return test.param.name; });

TEST(Errors, AMissingFileExitsWith66) {
  const TemporaryFolder folder;
  const Result result = run_program(train_arguments(folder / "out", folder / "none.jsonl"));
  EXPECT_EQ(result.code, code(ExitCode::kNoInput));
  EXPECT_THAT(result.error(), HasSubstr("none.jsonl"));
}

TEST(Errors, AnUnknownModelTypeIsNamed) {
  const TemporaryFolder folder;
  fs::copy(stories(), folder / "model");
  nlohmann::json config = nlohmann::json::parse(read_file(folder / "model" / "config.json"));
  config["model_type"] = "gpt_bigcode";
  write_file(folder / "model" / "config.json", config.dump());
  Arguments arguments = train_arguments(folder / "out", folder.write("train.jsonl", some_records()));
  arguments.push_back("--model_name_or_path=" + (folder / "model").string());
  const Result result = run_program(arguments);
  EXPECT_EQ(result.code, code(ExitCode::kConfig));
  EXPECT_THAT(result.error(), HasSubstr("gpt_bigcode"));
}

TEST(Errors, ALoraTargetThatMatchesNothingIsNamed) {
  const TemporaryFolder folder;
  const Result result = run_program(train_arguments(folder / "out", folder.write("train.jsonl", some_records()),
                                                    {"--lora_target_modules=q_proj,vproj"}));
  EXPECT_EQ(result.code, code(ExitCode::kConfig));
  EXPECT_THAT(result.error(), HasSubstr("vproj"));
}

TEST(Errors, ATruncatedModelIsNamed) {
  const TemporaryFolder folder;
  fs::copy(stories(), folder / "model");
  fs::resize_file(folder / "model" / "model.safetensors", 5000);
  const Result result = run_program({"eval", "--model_name_or_path=" + (folder / "model").string(),
                                     "--validation_file=" + folder.write("valid.jsonl", some_records())});
  EXPECT_EQ(result.code, code(ExitCode::kData));
  EXPECT_THAT(result.error(), HasSubstr("model.safetensors"));
}

TEST(Errors, UnknownCommandsAndOptionsNameTheNearest) {
  const Result command = run_program({"trian"});
  EXPECT_EQ(command.code, 64);
  EXPECT_EQ(command.error(), "error: there is no command 'trian'; did you mean 'train'?");
  const Result option = run_program({"train", "--learning_rat=1"});
  EXPECT_EQ(option.code, 64);
  EXPECT_THAT(option.error(), HasSubstr("learning_rate"));
  EXPECT_EQ(run_program({}).code, 64);
}

TEST(Errors, EachIsExactlyOneLine) {
  const Result result = run_program({"generate", "--model_name_or_path=/no/such/folder", "--prompt=x"});
  EXPECT_EQ(result.code, code(ExitCode::kNoInput));
  const std::string rest = result.err.substr(result.err.find("error: "));
  EXPECT_EQ(std::count(rest.begin(), rest.end(), '\n'), 1);
}

void open_as(int stream, const char* path, int flags) {
  ::close(stream);
  ASSERT_EQ(::open(path, flags), stream);
}

TEST(Streams, LostOutputExitsWith74) {
  const auto full = [] { open_as(STDOUT_FILENO, "/dev/full", O_WRONLY); };
  const auto closed = [] { ::close(STDOUT_FILENO); };
  for (const Arguments& arguments :
       {Arguments{"--help"}, {"--version"}, {"train", "--help"}, {"config", "--defaults"}}) {
    for (const std::function<void()>& prepare : {std::function<void()>(full), std::function<void()>(closed)}) {
      const Result result = run_program(arguments, RLIM_INFINITY, prepare);
      EXPECT_EQ(result.code, code(ExitCode::kIo)) << arguments.front();
      EXPECT_THAT(result.error(), HasSubstr("cannot write to standard output"));
    }
  }
}

TEST(Streams, AFullErrorStreamDoesNotHideTheCode) {
  const auto full = [] { open_as(STDERR_FILENO, "/dev/full", O_WRONLY); };
  EXPECT_EQ(run_program({"trian"}, RLIM_INFINITY, full).code, 64);
}

TEST(Streams, FilesDoNotTakeTheNumbersOfClosedOnes) {
  const TemporaryFolder folder;
  const auto closed = [] {
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::close(stream);
  };
  const Arguments arguments = train_arguments(folder / "out", folder.write("train.jsonl", some_records()));
  EXPECT_EQ(run_program(arguments, RLIM_INFINITY, closed).code, 0);
  const std::string metrics = read_file(folder / "out/metrics.jsonl");
  EXPECT_THAT(metrics, testing::StartsWith("{"));
  EXPECT_THAT(metrics, testing::Not(HasSubstr("info")));
}

TEST(Streams, APromptThatCannotBeReadIsAnError) {
  const Arguments arguments = {"generate", "--model_name_or_path=" + stories(), "--prompt=-", "--raw_prompt"};
  const auto from = [&](const std::function<void()>& prepare) {
    const Result result = run_program(arguments, RLIM_INFINITY, prepare);
    EXPECT_EQ(result.out, "");
    return std::pair(result.code, result.error());
  };
  const auto [closed, closed_error] = from([] { ::close(STDIN_FILENO); });
  EXPECT_EQ(closed, 74) << closed_error;
  const auto [folder, folder_error] = from([] { open_as(STDIN_FILENO, "/", O_RDONLY); });
  EXPECT_EQ(folder, 74) << folder_error;
  const auto [empty, empty_error] = from([] { open_as(STDIN_FILENO, "/dev/null", O_RDONLY); });
  EXPECT_EQ(empty, 65);
  EXPECT_THAT(empty_error, HasSubstr("is empty"));
  const auto [endless, endless_error] = from([] { open_as(STDIN_FILENO, "/dev/zero", O_RDONLY); });
  EXPECT_EQ(endless, 65);
  EXPECT_THAT(endless_error, HasSubstr("more than 64 MB"));
}

TEST(Errors, LongNamesAreShortenedAndTheReasonStays) {
  const Result result = run_program({"generate", "--model_name_or_path=" + std::string(5000, 'x'), "--prompt=x"});
  EXPECT_EQ(result.code, code(ExitCode::kNoInput));
  EXPECT_LT(result.error().size(), 800U);
  EXPECT_THAT(result.error(), HasSubstr("File name too long; "));
}

TEST(Errors, APipeAsInputDoesNotHang) {
  const TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe.jsonl").c_str(), 0600), 0);
  const Result result = run_program(train_arguments(folder / "out", folder / "pipe.jsonl"));
  EXPECT_EQ(result.code, code(ExitCode::kNoInput));
  EXPECT_THAT(result.error(), HasSubstr("is not a regular file"));
}

TEST(Help, ListsCommandsAndOptions) {
  const Result help = run_program({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* name : {"train", "eval", "generate", "preprocess", "config"}) EXPECT_THAT(help.out, HasSubstr(name));
  const Result options = run_program({"train", "--help"});
  for (const Arguments& arguments : {Arguments{"train", "-h"}, {"help", "train"}}) {
    EXPECT_EQ(run_program(arguments).out, options.out);
  }
  EXPECT_EQ(run_program({"help", "tarin"}).code, code(ExitCode::kUsage));
  EXPECT_EQ(options.code, 0);
  EXPECT_THAT(options.out, HasSubstr("learning_rate"));
  EXPECT_THAT(run_program({"--version"}).out, HasSubstr("libtorch"));
}

}  // namespace
}  // namespace fettle::cli
