// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "cli/text_stream.h"

namespace fettle::cli {
namespace {

using testing::HasSubstr;

TEST(Eval, PrintsOneObjectAndWritesRecordsAndLogits) {
  const TemporaryFolder folder;
  const Result result = run_program({"eval", "--model_name_or_path=" + stories(),
                                     "--validation_file=" + folder.write("v.jsonl", some_records()),
                                     "--per_record=" + (folder / "r.jsonl").string(),
                                     "--logits_file=" + (folder / "l.safetensors").string(), "--num_threads=1"});
  ASSERT_EQ(result.code, 0) << result.err;
  const nlohmann::json printed = nlohmann::json::parse(result.out);
  EXPECT_EQ(printed["records"], 8);
  EXPECT_NEAR(printed["perplexity"].get<double>(), std::exp(printed["eval_loss"].get<double>()), 1e-9);
  const std::string records = read_file(folder / "r.jsonl");
  EXPECT_EQ(std::count(records.begin(), records.end(), '\n'), 8);
  EXPECT_GT(std::filesystem::file_size(folder / "l.safetensors"), 8u * 512 * 4);
}

TEST(Train, WithoutTrainingItEvaluates) {
  const TemporaryFolder folder;
  const Result result = run_program({"train", "--do_train=false", "--model_name_or_path=" + stories(),
                                     "--num_threads=1", "--validation_file=" + folder.write("v.jsonl", some_records()),
                                     "--output_dir=" + (folder / "out").string()});
  ASSERT_EQ(result.code, 0) << result.err;
  const nlohmann::json results = nlohmann::json::parse(read_file(folder / "out" / "eval_results.json"));
  EXPECT_EQ(results["records"], 8);
}

TEST(Generate, PrintsTheAnswerAlone) {
  const Arguments arguments = {"generate",
                               "--model_name_or_path=" + stories(),
                               "--prompt=Once upon a time",
                               "--raw_prompt",
                               "--max_new_tokens=12",
                               "--num_threads=1",
                               "--bf16=false"};
  const Result result = run_program(arguments);
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("there was a"));
  EXPECT_THAT(result.out, testing::EndsWith("\n"));
  EXPECT_EQ(run_program(arguments).out, result.out);
}

struct BadGeneration {
  const char* option;
  ExitCode code;
  const char* message;
};

class RefusedGeneration : public testing::TestWithParam<BadGeneration> {};

TEST_P(RefusedGeneration, IsTheUsersErrorNotABug) {
  const Result result = run_program({"generate", "--model_name_or_path=" + stories(), "--prompt=Once", "--raw_prompt",
                                     "--do_sample=true", "--num_threads=1", "--max_new_tokens=2", GetParam().option});
  EXPECT_EQ(result.code, code(GetParam().code)) << result.err;
  EXPECT_THAT(result.error(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Generate, RefusedGeneration,
    testing::Values(BadGeneration{"--temperature=1e-300", ExitCode::kUsage, "temperature"},
                    BadGeneration{"--repetition_penalty=1e-45", ExitCode::kUsage, "repetition_penalty"},
                    BadGeneration{"--num_threads=3000000000", ExitCode::kUsage, "num_threads"},
                    BadGeneration{"--max_new_tokens=9223372036854775807", ExitCode::kUsage, "max_new_tokens"},
                    BadGeneration{"--max_new_tokens=1000000000000", ExitCode::kUsage, "max_new_tokens"}));

TEST(Generate, WarnsOfALengthThatTheModelWasNotMadeFor) {
  Arguments arguments = {"generate",
                         "--model_name_or_path=" + stories(),
                         "--prompt=Once upon a time",
                         "--raw_prompt",
                         "--num_threads=1",
                         "--max_new_tokens=509"};
  EXPECT_THAT(run_program(arguments).err, HasSubstr("exceed the 512 positions"));
  arguments.back() = "--max_new_tokens=4";
  EXPECT_THAT(run_program(arguments).err, testing::Not(HasSubstr("positions")));
}

// A base whose generation_config names another end than its tokenizer: raw text stops where transformers stops, an
// answer to a template also where Fettle's training ends one.
TEST(Generate, StopsAtTheConfiguredEndAndAfterATemplateAtTheTokenizersToo) {
  const TemporaryFolder folder;
  std::filesystem::copy(stories(), folder / "model");
  write_file(folder / "model" / "generation_config.json", R"({"eos_token_id": 511})");
  const auto length = [&](const char* option) {
    const Result result = run_program({"generate", "--model_name_or_path=" + (folder / "model").string(),
                                       "--prompt=Once upon a time", option, "--num_threads=1", "--max_new_tokens=500"});
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out.size();
  };
  const size_t raw = length("--raw_prompt=true");
  const size_t templated = length("--prompt_template=alpaca");
  EXPECT_LT(templated, raw);
}

TEST(TextStream, PiecesAreTheWholeText) {
  const auto tokenizer =
      text::Tokenizer::load(std::filesystem::path(FETTLE_SOURCE_DIR) / "tests/data/tokenizers/smollm2");
  const std::string whole = "A naïve café — 東京 🙂, twice  spaced\n\tand indented.";
  const std::vector<int32_t> ids = tokenizer.encode(whole, false).ids;
  TextStream stream(tokenizer);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = stream.add(id);
    EXPECT_EQ(piece.find("\xEF\xBF\xBD"), std::string::npos) << "half a character was printed";
    text += piece;
  }
  EXPECT_EQ(text + stream.finish(), whole);
}

}  // namespace
}  // namespace fettle::cli
