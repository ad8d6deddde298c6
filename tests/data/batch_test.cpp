// SPDX-License-Identifier: Apache-2.0
#include "data/batch.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>

#include "data/data_support.h"
#include "data/packing.h"
#include "data/permutation.h"

namespace fettle::data {
namespace {

using testing::ElementsAre;

/// Documents of the given lengths, token value = document, all but the first two tokens of each being targets.
TokenDataset documents_of(const std::vector<int64_t>& lengths) {
  std::vector<Example> examples;
  for (size_t i = 0; i < lengths.size(); ++i) {
    Example example;
    example.input_ids.assign(static_cast<size_t>(lengths[i]), static_cast<int32_t>(i));
    example.labels = example.input_ids;
    std::fill_n(example.labels.begin(), std::min<size_t>(2, example.labels.size()), kIgnore);
    examples.push_back(example);
  }
  return TokenDataset::from_examples(examples);
}

/// Lengths as instruction data has them: many short, a few long.
std::vector<int64_t> long_tailed_lengths(int64_t count, int64_t limit) {
  std::vector<int64_t> lengths;
  for (const int64_t draw : permutation(count, 7, 7)) lengths.push_back(8 + (limit - 8) * draw / count * draw / count);
  return lengths;
}

std::vector<int64_t> sorted(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  return values;
}

std::vector<int64_t> first_numbers(int64_t count) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

std::vector<int64_t> epoch_documents(const BatchOrder& order) {
  std::vector<int64_t> documents;
  for (int64_t i = 0; i < order.batches(); ++i) {
    const Batch batch = order.batch(i);
    documents.insert(documents.end(), batch.documents.begin(), batch.documents.end());
  }
  return documents;
}

TEST(BatchTest, StreamOfDocumentsWithShiftedLabels) {
  const TokenDataset dataset = TokenDataset::from_examples({{{10, 11, 12}, {-100, 11, 12}}, {{20, 21}, {20, 21}}});
  const BatchOrder order(dataset, {.max_seq_length = 8, .packing = true, .shuffle = false, .seed = 1, .batch_size = 4},
                         0);
  ASSERT_EQ(order.batches(), 1);
  const Batch batch = order.batch(0);
  EXPECT_THAT(batch.tokens, ElementsAre(10, 11, 12, 20, 21));
  EXPECT_THAT(batch.labels, ElementsAre(11, 12, kIgnore, 21, kIgnore));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0, 1));
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0, 3, 5));
  EXPECT_THAT(batch.documents, ElementsAre(0, 1));
  EXPECT_EQ(batch.target_tokens, 3);
  EXPECT_EQ(dataset.target_tokens(), 3);
}

TEST(BatchTest, FilledRowsHaveOneShapeWhateverTheDocuments) {
  const TokenDataset dataset = documents_of({3, 2, 5, 4, 1});  // rows of 5: {3, 2}, {5}, {4, 1}
  for (const bool packing : {true, false}) {
    const OrderOptions options{
        .max_seq_length = 5, .packing = packing, .shuffle = false, .batch_size = 2, .fill_rows = true};
    const BatchOrder order(dataset, options, 0);
    OrderOptions plain = options;
    plain.fill_rows = false;
    for (int64_t i = 0; i < order.batches(); ++i) {
      const Batch batch = order.batch(i);
      EXPECT_EQ(batch.tokens.size(), 10u);
      EXPECT_EQ(batch.labels.size(), 10u);
      EXPECT_EQ(batch.positions.size(), 10u);
      EXPECT_EQ(batch.row_length, 5);
      EXPECT_EQ(batch.one_document_a_row, !packing);
      EXPECT_EQ(batch.cu_seqlens.back(), 10);
      EXPECT_EQ(batch.cu_seqlens.size(), batch.documents.size() + 1);
      EXPECT_EQ(batch.target_tokens, BatchOrder(dataset, plain, 0).batch(i).target_tokens);
      EXPECT_EQ(std::ssize(batch.labels) - std::ranges::count(batch.labels, kIgnore), batch.target_tokens);
      std::vector<int64_t> documents = batch.documents;
      std::erase(documents, kFilling);
      EXPECT_EQ(documents, BatchOrder(dataset, plain, 0).batch(i).documents);
    }
  }
  const Batch last = BatchOrder(dataset, {5, true, false, 1, 2, true}, 0).batch(1);
  EXPECT_THAT(last.tokens, ElementsAre(3, 3, 3, 3, 4, 0, 0, 0, 0, 0));
  EXPECT_THAT(last.cu_seqlens, ElementsAre(0, 4, 5, 10));
  EXPECT_THAT(last.documents, ElementsAre(3, 4, kFilling));
}

TEST(BatchTest, EveryDocumentOnceAnEpochAndNoRowOverfull) {
  const auto lengths = long_tailed_lengths(1000, 256);
  const TokenDataset dataset = documents_of(lengths);
  for (const bool packing : {true, false}) {
    for (const bool shuffle : {true, false}) {
      const BatchOrder order(dataset, {256, packing, shuffle, 3, 1}, 2);
      EXPECT_EQ(sorted(epoch_documents(order)), first_numbers(1000));
      int64_t targets = 0;
      for (int64_t i = 0; i < order.batches(); ++i) {
        const Batch batch = order.batch(i);
        EXPECT_LE(batch.tokens.size(), 256U);
        targets += batch.target_tokens;
      }
      EXPECT_EQ(targets, dataset.target_tokens());
      if (!packing) {
        EXPECT_EQ(order.rows(), 1000);
      }
    }
  }
}

TEST(BatchTest, OrderIsAFunctionOfSeedAndEpoch) {
  const TokenDataset dataset = documents_of(long_tailed_lengths(300, 128));
  const auto documents = [&](int64_t seed, int64_t epoch, bool packing) {
    return epoch_documents(BatchOrder(dataset, {128, packing, true, seed, 4}, epoch));
  };
  for (const bool packing : {true, false}) {
    EXPECT_EQ(documents(5, 1, packing), documents(5, 1, packing));
    EXPECT_NE(documents(5, 1, packing), documents(5, 2, packing));
    EXPECT_NE(documents(5, 1, packing), documents(6, 1, packing));
  }
}

TEST(BatchTest, WithoutShuffleTheOrderOfTheFile) {
  const TokenDataset dataset = documents_of({3, 5, 2, 4});
  EXPECT_THAT(epoch_documents(BatchOrder(dataset, {8, false, false, 1, 3}, 9)), ElementsAre(0, 1, 2, 3));
  // Best fit: 5 (row a), 4 (row b), 3 → a (exact), 2 → b. Rows by their first document: a = {0, 1}, b = {2, 3}.
  const BatchOrder packed(dataset, {8, true, false, 1, 1}, 9);
  EXPECT_THAT(packed.batch(0).documents, ElementsAre(0, 1));
  EXPECT_THAT(packed.batch(1).documents, ElementsAre(2, 3));
  EXPECT_DOUBLE_EQ(packed.packing_efficiency(), 14.0 / 16.0);
}

TEST(BatchTest, AnyBatchAtOnce) {
  const TokenDataset dataset = documents_of(long_tailed_lengths(100, 64));
  const BatchOrder order(dataset, {64, true, true, 1, 3}, 0);
  ASSERT_GT(order.batches(), 3);
  EXPECT_EQ(order.batches(), (order.rows() + 2) / 3);
  const Batch late = order.batch(2);
  EXPECT_NE(order.batch(0).tokens, late.tokens);
  EXPECT_EQ(order.batch(2).tokens, late.tokens);
  EXPECT_THROW(static_cast<void>(order.batch(order.batches())), Error);
  EXPECT_THROW(static_cast<void>(order.batch(-1)), Error);
}

TEST(BatchTest, EmptyDatasetHasNoBatches) {
  EXPECT_EQ(BatchOrder(TokenDataset::from_examples({}), {64, true, true, 1, 3}, 0).batches(), 0);
}

TEST(BatchTest, DocumentLongerThanARowIsRefused) {
  const TokenDataset dataset = documents_of({9});
  for (const bool packing : {true, false}) EXPECT_THROW(BatchOrder(dataset, {8, packing, true, 1, 1}, 0), Error);
}

/// The slow twin: every row looked at for every item.
int64_t rows_by_search(const std::vector<int64_t>& lengths, int64_t capacity) {
  auto order = first_numbers(static_cast<int64_t>(lengths.size()));
  const auto length = [&](int64_t item) { return lengths[static_cast<size_t>(item)]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
  std::vector<int64_t> spaces;
  for (const int64_t item : order) {
    auto best = spaces.end();
    for (auto row = spaces.begin(); row != spaces.end(); ++row) {
      if (*row >= length(item) && (best == spaces.end() || *row < *best)) best = row;
    }
    if (best == spaces.end()) best = spaces.insert(best, capacity);
    *best -= length(item);
  }
  return static_cast<int64_t>(spaces.size());
}

TEST(PackingTest, AsManyRowsAsAFullSearch) {
  for (const int64_t capacity : {1, 7, 63, 64, 65, 1000, 5000}) {
    for (const uint64_t seed : {1, 2, 3}) {
      std::vector<int64_t> lengths;
      for (const int64_t draw : permutation(500, seed, 0)) lengths.push_back(1 + draw * 31 % capacity);
      EXPECT_EQ(pack_best_fit(lengths, capacity).rows(), rows_by_search(lengths, capacity)) << capacity;
    }
  }
}

TEST(PackingTest, AMillionDocuments) {
  const Packing packing = pack_best_fit(long_tailed_lengths(1'000'000, 2048), 2048);
  EXPECT_EQ(sorted(packing.items), first_numbers(1'000'000));
}

TEST(PermutationTest, FixedForever) {
  // The train/validation split and resumed runs depend on these very numbers (computed apart, with Python's integers).
  EXPECT_THAT(permutation(8, 42, 0), ElementsAre(7, 0, 6, 2, 4, 5, 1, 3));
  EXPECT_THAT(permutation(8, 42, 1), ElementsAre(0, 6, 1, 7, 3, 4, 2, 5));
  EXPECT_EQ(sorted(permutation(1000, 1, 2)), first_numbers(1000));
  EXPECT_TRUE(permutation(0, 1, 2).empty());
}

TEST(PermutationTest, EveryPlaceEquallyLikely) {
  std::vector<int64_t> counts(6, 0);
  for (uint64_t seed = 0; seed < 6000; ++seed) ++counts[static_cast<size_t>(permutation(6, seed, 1)[0])];
  for (const int64_t count : counts) EXPECT_NEAR(count, 1000, 150);  // 5 standard deviations
}

}  // namespace
}  // namespace fettle::data
