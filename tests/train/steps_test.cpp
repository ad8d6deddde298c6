// SPDX-License-Identifier: Apache-2.0
#include "train/steps.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <vector>

#include "train/tiny.h"

namespace fettle::train {
namespace {

TEST(StepLoader, TheLastStepOfAnEpochMayBeShort) {
  StepLoader loader(tiny_dataset(15), {64, false, false, 3, 2}, 3);  // 8 batches: 3 + 3 + 2
  EXPECT_EQ(loader.steps_per_epoch(), 3);
  Cursor cursor;
  std::multiset<int64_t> seen;
  const std::vector<size_t> sizes = {3, 3, 2};
  for (size_t i = 0; i < sizes.size(); ++i) {
    const Step step = loader.next(cursor);
    EXPECT_EQ(step.batches.size(), sizes[i]);
    EXPECT_EQ(step.ends_epoch, i == 2);
    int64_t targets = 0;
    for (const data::Batch& batch : step.batches) {
      targets += batch.target_tokens;
      seen.insert(batch.documents.begin(), batch.documents.end());
    }
    EXPECT_EQ(step.target_tokens, targets);
  }
  EXPECT_EQ(cursor.epoch, 1);
  EXPECT_EQ(cursor.batch, 0);
  EXPECT_EQ(seen.size(), 15u);
  EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(), 15u);
}

TEST(StepLoader, TheCursorAloneDecidesTheStep) {
  StepLoader first(tiny_dataset(15), {64, true, true, 3, 1}, 2);
  StepLoader second(tiny_dataset(15), {64, true, true, 3, 1}, 2);
  Cursor cursor;
  first.next(cursor);
  Cursor again = cursor;
  Cursor far{.epoch = 4, .batch = 0};
  second.next(far);
  EXPECT_EQ(first.next(cursor).batches.front().tokens, second.next(again).batches.front().tokens);
}

TEST(StepLoader, RanksShareAStepWithoutOverlap) {
  const data::OrderOptions order = {64, false, true, 3, 2};
  for (const int64_t ranks : {2, 3, 4}) {
    StepLoader whole(tiny_dataset(15), order, 3);  // 8 batches: 3 + 3 + 2
    Cursor cursor;
    while (cursor.epoch == 0) {
      const Cursor begin = cursor;
      const Step expected = whole.next(cursor);
      std::map<uint64_t, std::vector<int64_t>> found;  // documents by seed
      for (int64_t rank = 0; rank < ranks; ++rank) {
        StepLoader part(tiny_dataset(15), order, 3, {rank, ranks});
        Cursor place = begin;
        const Step share = part.next(place);
        EXPECT_EQ(place.batch, cursor.batch);
        EXPECT_EQ(share.tokens, expected.tokens);
        EXPECT_EQ(share.target_tokens, expected.target_tokens);
        EXPECT_EQ(share.document_lengths, expected.document_lengths);
        EXPECT_EQ(share.ends_epoch, expected.ends_epoch);
        for (size_t i = 0; i < share.batches.size(); ++i) found[share.seeds[i]] = share.batches[i].documents;
      }
      ASSERT_EQ(found.size(), expected.batches.size());
      for (size_t i = 0; i < expected.batches.size(); ++i)
        EXPECT_EQ(found.at(expected.seeds[i]), expected.batches[i].documents);
    }
  }
}

TEST(StepLoader, EpochsCountTheFraction) {
  StepLoader loader(tiny_dataset(15), {64, false, false, 3, 2}, 2);  // 8 batches
  EXPECT_EQ(loader.epochs({2, 0}), 2.0);
  EXPECT_EQ(loader.epochs({2, 2}), 2.25);
}

TEST(StepLoader, RefusesAStepWithoutTargets) {
  data::Example masked{{5, 6, 7}, {data::kIgnore, data::kIgnore, data::kIgnore}};
  StepLoader loader(data::TokenDataset::from_examples({masked, masked}), {64, true, true, 3, 1}, 1);
  Cursor cursor;
  EXPECT_EQ(code_of([&] { loader.next(cursor); }), ExitCode::kData);
}

TEST(TotalSteps, AsTransformers) {
  config::TrainingConfig options;
  options.num_train_epochs = 2.5;
  EXPECT_EQ(total_steps(options, 3), 8);
  options.max_steps = 4;
  EXPECT_EQ(total_steps(options, 3), 4);
}

TEST(TotalSteps, AreBounded) {
  config::TrainingConfig options;
  for (const double epochs : {1e19, 1e12, 1e300}) {
    options.num_train_epochs = epochs;
    EXPECT_EQ(code_of([&] { total_steps(options, 3); }), ExitCode::kUsage) << epochs;
  }
  options.num_train_epochs = 1e-300;
  EXPECT_EQ(total_steps(options, 3), 1);
  options.max_steps = INT64_MAX;
  EXPECT_EQ(code_of([&] { total_steps(options, 3); }), ExitCode::kUsage);
}

TEST(IntervalSteps, NumberOrShare) {
  EXPECT_EQ(interval_steps(10, 100), 10);
  EXPECT_EQ(interval_steps(0.1, 101), 11);
  EXPECT_EQ(interval_steps(0.001, 10), 1);
  EXPECT_EQ(interval_steps(1e300, 10), kMostSteps);
}

}  // namespace
}  // namespace fettle::train
