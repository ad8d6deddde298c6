// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/file.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

namespace fs = std::filesystem;

Snapshot filled(float value) {
  return {
      "adapter_model.safetensors",
      {{"a.weight", at::full({2, 3}, value, at::kFloat)}},
      {{"a.weight.exp_avg", at::full({2, 3}, value / 2, at::kFloat)}, {"a.weight.step", at::full({}, 4, at::kFloat)}},
      {{"value", value}}};
}

TEST(Checkpoint, RestoresEveryBit) {
  const TemporaryFolder folder;
  const fs::path written = write_checkpoint(folder.path(), 7, filled(1.5F));
  EXPECT_EQ(written, folder.path() / "checkpoint-7");
  EXPECT_EQ(why_broken(written), "");
  const Snapshot restored = filled(0);
  restore_checkpoint(written, restored);
  EXPECT_TRUE(at::equal(restored.weights[0].tensor, filled(1.5F).weights[0].tensor));
  EXPECT_TRUE(at::equal(restored.optimizer[0].tensor, filled(1.5F).optimizer[0].tensor));
  EXPECT_EQ(restored.optimizer[1].tensor.item<float>(), 4);
  EXPECT_EQ(read_checkpoint_state(written).at("value"), 1.5);
}

TEST(Checkpoint, RefusesTensorsOfAnotherModel) {
  const TemporaryFolder folder;
  const fs::path written = write_checkpoint(folder.path(), 1, filled(1));
  Snapshot other = filled(0);
  other.weights[0].tensor = at::zeros({3, 2});
  EXPECT_EQ(code_of([&] { restore_checkpoint(written, other); }), ExitCode::kData);
  other = filled(0);
  other.weights[0].name = "b.weight";
  EXPECT_EQ(code_of([&] { restore_checkpoint(written, other); }), ExitCode::kData);
  other = filled(0);
  other.optimizer.pop_back();
  EXPECT_EQ(code_of([&] { restore_checkpoint(written, other); }), ExitCode::kData);
}

void flip_last_byte(const fs::path& file) {
  std::string content = read_file(file);
  content.back() = static_cast<char>(content.back() ^ 1);
  write_file(file, content);
}

TEST(Checkpoint, EveryDamageIsFoundAndNamed) {
  for (const char* name : {"adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json"}) {
    SCOPED_TRACE(name);
    const TemporaryFolder folder;
    const fs::path written = write_checkpoint(folder.path(), 1, filled(1));
    flip_last_byte(written / name);
    EXPECT_THAT(why_broken(written), testing::AllOf(testing::HasSubstr(name), testing::HasSubstr("has another hash")));
    fs::resize_file(written / name, fs::file_size(written / name) - 1);
    EXPECT_THAT(why_broken(written), testing::AllOf(testing::HasSubstr(name), testing::HasSubstr("size")));
    fs::remove(written / name);
    EXPECT_THAT(why_broken(written), testing::HasSubstr(std::string(name) + " is missing"));
  }
}

TEST(Checkpoint, AManifestThatIsNoneIsBroken) {
  const TemporaryFolder folder;
  const fs::path written = write_checkpoint(folder.path(), 1, filled(1));
  for (const char* text : {"", "{", "[]", "{\"files\": 3}", "{\"files\": {}}", "{\"files\": {\"../x\": {}}}"}) {
    write_file(written / "manifest.json", text);
    EXPECT_NE(why_broken(written), "") << text;
  }
  fs::remove(written / "manifest.json");
  EXPECT_THAT(why_broken(written), testing::HasSubstr("manifest.json is missing"));
}

TEST(Checkpoint, ListsByStep) {
  const TemporaryFolder folder;
  EXPECT_TRUE(list_checkpoints(folder.path() / "none").empty());
  for (const int step : {10, 2, 9}) write_checkpoint(folder.path(), step, filled(1));
  fs::create_directories(folder.path() / "checkpoint-11.unfinished");
  fs::create_directories(folder.path() / "checkpoint-final");
  EXPECT_THAT(list_checkpoints(folder.path()),
              testing::ElementsAre(folder.path() / "checkpoint-2", folder.path() / "checkpoint-9",
                                   folder.path() / "checkpoint-10"));
  write_file(folder.path() / "file", "");
  EXPECT_EQ(code_of([&] { list_checkpoints(folder.path() / "file"); }), ExitCode::kNoInput);
}

TEST(Checkpoint, AResumedRunRemovesWhatCameLater) {
  const TemporaryFolder folder;
  for (const int step : {2, 9, 10}) write_checkpoint(folder.path(), step, filled(1));
  remove_checkpoints_after(folder.path(), 9);
  EXPECT_THAT(list_checkpoints(folder.path()),
              testing::ElementsAre(folder.path() / "checkpoint-2", folder.path() / "checkpoint-9"));
}

TEST(Checkpoint, PruningKeepsTheNewest) {
  const TemporaryFolder folder;
  for (const int step : {2, 9, 10}) write_checkpoint(folder.path(), step, filled(1));
  fs::create_directories(folder.path() / "checkpoint-11.unfinished");
  prune_checkpoints(folder.path(), 0);
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 3u);
  EXPECT_FALSE(fs::exists(folder.path() / "checkpoint-11.unfinished"));
  prune_checkpoints(folder.path(), 2);
  EXPECT_THAT(list_checkpoints(folder.path()),
              testing::ElementsAre(folder.path() / "checkpoint-9", folder.path() / "checkpoint-10"));
}

TEST(Checkpoint, PruningCountsWholeOnesOnly) {
  const TemporaryFolder folder;
  for (const int step : {1, 2, 3, 4}) write_checkpoint(folder.path(), step, filled(1));
  fs::remove(folder.path() / "checkpoint-3/optimizer.safetensors");
  prune_checkpoints(folder.path(), 2);
  EXPECT_THAT(list_checkpoints(folder.path()),
              testing::ElementsAre(folder.path() / "checkpoint-2", folder.path() / "checkpoint-4"));
}

TEST(Checkpoint, NothingIsWrittenForANonFiniteTensor) {
  const TemporaryFolder folder;
  EXPECT_EQ(code_of([&] { write_checkpoint(folder.path(), 3, filled(std::numeric_limits<float>::infinity())); }),
            ExitCode::kDiverged);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Checkpoint, AFailedWriteLeavesNothingAndKeepsTheOlder) {
  const TemporaryFolder folder;
  write_checkpoint(folder.path(), 3, filled(1));
  const auto fail = [](const fs::path& unfinished) { read_file(unfinished / "not there"); };
  EXPECT_EQ(code_of([&] { write_checkpoint(folder.path(), 4, filled(2), fail); }), ExitCode::kNoInput);
  EXPECT_EQ(code_of([&] { write_checkpoint(folder.path(), 3, filled(2), fail); }), ExitCode::kNoInput);
  EXPECT_THAT(list_checkpoints(folder.path()), testing::ElementsAre(folder.path() / "checkpoint-3"));
  EXPECT_EQ(read_checkpoint_state(folder.path() / "checkpoint-3").at("value"), 1.0);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace fettle::train
