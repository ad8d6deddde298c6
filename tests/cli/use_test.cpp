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
