// SPDX-License-Identifier: Apache-2.0
// Stop strings, files of prompts, and what fettle generate and fettle benchmark refuse.
#include "cli/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/program.h"

namespace fettle::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;

/// What is shown after each piece, and at the end.
std::vector<std::string> shown(const std::vector<std::string>& strings, const std::vector<std::string>& pieces) {
  StopText stop(strings);
  std::vector<std::string> all;
  for (const std::string& piece : pieces) all.push_back(stop.add(piece));
  all.push_back(stop.finish());
  return all;
}

using Pieces = std::vector<std::string>;

TEST(StopText, HoldsBackWhatMayBecomeAStopString) {
  EXPECT_EQ(shown({"END"}, {"a E", "N", "D b", "c"}), (Pieces{"a ", "", "END", "", ""}));
  EXPECT_EQ(shown({"END"}, {"a E", "N", "E", "x"}), (Pieces{"a ", "", "EN", "Ex", ""}));
  EXPECT_EQ(shown({"END"}, {"a EN"}), (Pieces{"a ", "EN"})) << "the text ends there";
  EXPECT_EQ(shown({}, {"a", "b"}), (Pieces{"a", "b", ""}));
  EXPECT_EQ(shown({"aab"}, {"aa", "ab", "x"}), (Pieces{"", "aaab", "", ""}));
}

TEST(StopText, TheOneThatEndsFirstCounts) {
  EXPECT_EQ(shown({"long one", "one", "g"}, {"a long one"}), (Pieces{"a long", ""}));
  EXPECT_EQ(shown({"\n\n", "\n"}, {"a\n\nb"}), (Pieces{"a\n", ""}));
  StopText stop({"b"});
  EXPECT_FALSE(stop.has_ended());
  stop.add("abc");
  EXPECT_TRUE(stop.has_ended());
}

Arguments generate_arguments(const Arguments& more) {
  Arguments arguments = {"generate",     "--model_name_or_path=" + stories(),
                         "--raw_prompt", "--num_threads=1",
                         "--bf16=false", "--max_new_tokens=24"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::string answer_to(const std::string& prompt, const Arguments& more = {}) {
  Arguments arguments = generate_arguments({"--prompt=" + prompt});
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Result result = run_program(arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, testing::EndsWith("\n"));
  return result.out.substr(0, result.out.size() - 1);
}

TEST(Generate, EndsWithAStopString) {
  const std::string whole = answer_to("Once upon a time");
  const size_t found = whole.find("girl na");  // begins and ends inside words
  ASSERT_NE(found, std::string::npos) << whole;
  EXPECT_EQ(answer_to("Once upon a time", {"--stop_strings=girl na"}), whole.substr(0, found + 7));
  EXPECT_EQ(answer_to("Once upon a time", {R"(--stop_strings=["zebra", "girl na", "named"])"}),
            whole.substr(0, found + 7));
  EXPECT_EQ(answer_to("Once upon a time", {"--stop_strings=zebra"}), whole);
}

TEST(GenerateFile, AnswersEachPromptAsAlone) {
  const TemporaryFolder folder;
  const std::vector<std::string> prompts = {"Once upon a time",
                                            "The dog",
                                            "Lily and Tom went to the big park",
                                            "One",
                                            "A",
                                            "Tom had a red ball",
                                            "It was",
                                            "Mom said",
                                            "The cat",
                                            "Ben"};
  std::string lines;
  for (const std::string& prompt : prompts) lines += json{{"prompt", prompt}}.dump() + "\n";
  const std::string output = folder / "answers.jsonl";
  const Arguments arguments =
      generate_arguments({"--prompts_file=" + folder.write("p.jsonl", lines), "--output=" + output});
  const Result result = run_program(arguments);
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  std::istringstream answers(read_file(output));
  size_t i = 0;
  for (std::string line; std::getline(answers, line); ++i) {
    const json answer = json::parse(line);
    ASSERT_LT(i, prompts.size());
    EXPECT_EQ(answer["prompt"], prompts[i]);
    EXPECT_EQ(answer["answer"], answer_to(prompts[i])) << prompts[i];
  }
  EXPECT_EQ(i, prompts.size());
}

TEST(GenerateFile, SamplesByThePromptsPlaceAlone) {
  const TemporaryFolder folder;
  const auto sampled = [&folder](const std::string& prompts) {
    const std::string output = folder / "sampled.jsonl";
    const Result result =
        run_program(generate_arguments({"--prompts_file=" + folder.write("p.txt", prompts), "--output=" + output,
                                        "--overwrite_output", "--do_sample", "--temperature=2", "--seed=3"}));
    EXPECT_EQ(result.code, 0) << result.err;
    std::vector<std::string> answers;
    std::istringstream text(read_file(output));
    for (std::string line; std::getline(text, line);) answers.push_back(json::parse(line)["answer"]);
    return answers;
  };
  const auto first = sampled("The dog\nThe dog\n");
  ASSERT_EQ(first.size(), 2u);
  EXPECT_NE(first[0], first[1]);
  const auto more = sampled("The dog\nThe dog\nOnce upon a time there was\n");
  EXPECT_EQ(more[0], first[0]);
  EXPECT_EQ(more[1], first[1]);
}

TEST(GenerateFile, ReplacesNothingUnasked) {
  const TemporaryFolder folder;
  const std::string prompts = "--prompts_file=" + folder.write("p.txt", "The dog\n");
  const std::string output = folder.write("old.jsonl", "mine");
  Result result = run_program(generate_arguments({prompts, "--output=" + output}));
  EXPECT_EQ(result.code, code(ExitCode::kConfig));
  EXPECT_THAT(result.error(), HasSubstr("overwrite_output"));
  EXPECT_EQ(read_file(output), "mine");
  result = run_program(generate_arguments({prompts, "--output=" + output, "--overwrite_output"}));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(json::parse(read_file(output))["prompt"], "The dog");
  result = run_program(generate_arguments({prompts, "--output=" + (folder / "p.txt").string(), "--overwrite_output"}));
  EXPECT_EQ(result.code, code(ExitCode::kUsage));
  EXPECT_EQ(read_file(folder / "p.txt"), "The dog\n");
}

struct BadUse {
  Arguments arguments;
  ExitCode code;
  const char* message;
};

class RefusedUse : public testing::TestWithParam<BadUse> {};

TEST_P(RefusedUse, IsTheUsersError) {
  Arguments arguments = GetParam().arguments;
  arguments.push_back("--model_name_or_path=" + stories());
  arguments.emplace_back("--num_threads=1");
  const Result result = run_program(arguments);
  EXPECT_EQ(result.code, code(GetParam().code)) << result.err;
  EXPECT_THAT(result.error(), HasSubstr(GetParam().message));
  EXPECT_EQ(result.out, "");
}

INSTANTIATE_TEST_SUITE_P(
    Generate, RefusedUse,
    testing::Values(
        BadUse{{"generate"}, ExitCode::kUsage, "prompt or prompts_file"},
        BadUse{{"generate", "--prompt=a", "--prompts_file=b.txt"}, ExitCode::kConfig, "prompts_file"},
        BadUse{{"generate", "--prompts_file=b.txt"}, ExitCode::kUsage, "output"},
        BadUse{{"generate", "--prompts_file=/absent.txt", "--output=/dev/null"}, ExitCode::kNoInput, "absent"},
        BadUse{{"generate", "--prompts_file=/absent.doc", "--output=/dev/null"}, ExitCode::kUsage, "absent.doc"},
        BadUse{{"generate", "--prompt=a", "--stop_strings=[\"\"]"}, ExitCode::kUsage, "stop_strings"},
        BadUse{{"generate", "--prompt=a", "--do_sample", "--min_p=1.5"}, ExitCode::kUsage, "min_p"},
        BadUse{{"generate", "--prompt=a", "--min_p=0.1"}, ExitCode::kConfig, "do_sample is false"},
        BadUse{{"generate", "--prompt=a", "--output=b"}, ExitCode::kConfig, "prompts_file is not set"}));

INSTANTIATE_TEST_SUITE_P(
    Chat, RefusedUse,
    testing::Values(BadUse{{"chat"}, ExitCode::kConfig, "no chat template"},
                    BadUse{{"chat", "--prompt_template=alpaca"}, ExitCode::kConfig, "not a conversation"},
                    BadUse{{"chat", "--prompt_template=none"}, ExitCode::kConfig, "not a conversation"},
                    BadUse{{"chat", "--prompt_template=/absent.jinja"}, ExitCode::kUsage, "neither known nor a file"},
                    BadUse{{"chat", "--prompt=a"}, ExitCode::kUsage, "prompt"}));

INSTANTIATE_TEST_SUITE_P(
    Benchmark, RefusedUse,
    testing::Values(
        BadUse{{"benchmark", "--benchmark_cores_per_instance=4096"}, ExitCode::kConfig, "cores"},
        BadUse{{"benchmark", "--benchmark_num_instances=1024"}, ExitCode::kConfig, "benchmark_num_instances is 1024"},
        BadUse{{"benchmark", "--benchmark_iterations=0"}, ExitCode::kUsage, "benchmark_iterations"},
        BadUse{{"benchmark", "--benchmark_output_tokens=1"}, ExitCode::kUsage, "benchmark_output_tokens"},
        BadUse{{"benchmark", "--benchmark_output=/absent/b.json"}, ExitCode::kNoInput, "absent"},
        BadUse{{"benchmark", "--benchmark_batch_size=0"}, ExitCode::kUsage, "benchmark_batch_size"}));

}  // namespace
}  // namespace fettle::cli
