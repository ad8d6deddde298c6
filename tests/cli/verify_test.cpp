// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/program.h"

namespace fettle::cli {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

/// A run that leaves its last words in `file`.
Result run_with_message(const Arguments& arguments, const std::filesystem::path& file) {
  return run_program(arguments, RLIM_INFINITY,
                     [&file] { ::setenv("FETTLE_TERMINATION_MESSAGE_PATH", file.c_str(), 1); });
}

TEST(Verify, KnowsAResultFromADamagedOne) {
  const TemporaryFolder folder;
  const std::filesystem::path out = folder / "out";
  ASSERT_EQ(run_program(train_arguments(out, folder.write("train.jsonl", some_records()))).code, 0);
  const Result whole = run_program({"verify", out});
  EXPECT_EQ(whole.code, 0) << whole.err;
  EXPECT_THAT(whole.out, HasSubstr("all as written"));
  const std::string adapter = read_file(out / "adapter_model.safetensors");
  std::string damaged = adapter;
  damaged.back() ^= 1;
  write_file(out / "adapter_model.safetensors", damaged);
  const Result broken = run_program({"verify", out});
  EXPECT_EQ(broken.code, code(ExitCode::kData));
  EXPECT_THAT(broken.err, HasSubstr("adapter_model.safetensors differs from what was written"));
  EXPECT_THAT(broken.error(), HasSubstr("copy them again"));
}

TEST(Verify, MakesAManifestOfAnyFolder) {
  const TemporaryFolder folder;
  folder.write("data/train.jsonl", some_records());
  const std::string data = folder / "data";
  EXPECT_EQ(run_program({"verify", data}).code, code(ExitCode::kNoInput));
  EXPECT_THAT(run_program({"verify", "--write", data}).out, HasSubstr("of 1 files"));
  EXPECT_EQ(run_program({"verify", data}).code, 0);
}

TEST(Verify, BlessesNoModelThatDiverged) {
  const TemporaryFolder folder;
  const std::filesystem::path model = folder / "model";
  std::filesystem::copy(stories(), model, std::filesystem::copy_options::recursive);
  std::string weights = read_file(model / "model.safetensors");
  weights.replace(weights.size() - 4, 4, std::string(4, '\xff'));
  write_file(model / "model.safetensors", weights);
  const Result result = run_program({"verify", "--write", model});
  EXPECT_EQ(result.code, code(ExitCode::kData));
  EXPECT_THAT(result.error(), HasSubstr("holds NaN or infinity"));
}

TEST(Verify, SaysHowItIsUsed) {
  EXPECT_THAT(run_program({"verify", "--help"}).out, StartsWith("fettle verify DIR"));
  EXPECT_EQ(run_program({"verify"}).code, code(ExitCode::kUsage));
  EXPECT_EQ(run_program({"verify", "a", "b"}).code, code(ExitCode::kUsage));
  EXPECT_EQ(run_program({"verify", "--rewrite", "/tmp"}).code, code(ExitCode::kUsage));
  EXPECT_EQ(run_program({"verify", "/nowhere"}).code, code(ExitCode::kNoInput));
}

TEST(TerminationMessage, HoldsTheErrorOrTheResult) {
  const TemporaryFolder folder;
  const std::string file = folder.write("message", "");
  const Result failed = run_with_message({"train", "--learning_rat=1"}, file);
  EXPECT_EQ(failed.code, code(ExitCode::kUsage));
  EXPECT_EQ(read_file(file), failed.err);
  run_with_message({"nonsense"}, file);
  EXPECT_EQ(read_file(file), failed.err) << "of several processes the first to fail knows why";

  const std::string other = folder.write("other", "");
  const auto arguments = train_arguments(folder / "out", folder.write("train.jsonl", some_records()));
  ASSERT_EQ(run_with_message(arguments, other).code, 0);
  EXPECT_THAT(read_file(other), StartsWith("complete: the adapter is in " + (folder / "out").string() + "; steps 2, "));
  EXPECT_EQ(run_with_message({"train", "--learning_rat=1"}, folder / "none" / "message").code, code(ExitCode::kUsage))
      << "a path that cannot be written changes nothing";
}

}  // namespace
}  // namespace fettle::cli
