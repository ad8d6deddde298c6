// SPDX-License-Identifier: Apache-2.0
/// Attention over documents against its twin (explicit scores and mask) in float64.
#include "ops/attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/all.h>
#include <ATen/ops/any.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/isnan.h>
#include <c10/util/Exception.h>

#include <limits>

#include "reference.h"

namespace fettle::ops {
namespace {

using testing::expect_matches_twin;
using testing::random;

struct Case {
  int64_t heads;
  int64_t key_heads;
  int64_t window;
  std::vector<int32_t> boundaries;
};

TEST(Attention, MatchesTwinForwardAndBackward) {
  const std::vector<Case> cases{
      {2, 2, 0, {0, 40}},              // one document
      {6, 2, 0, {0, 1, 40, 40, 131}},  // grouped queries; documents of 1 and 0 tokens
      {4, 1, 7, {0, 5, 60}},           // one shorter and one longer than the window
      {2, 1, 2, {0, 9}},               // sees itself and one before
      {2, 2, 300, {0, 700, 950}},      // several segments in a document
      {2, 1, 100, {0, 600}},           // window below the least block
      {2, 1, 0, {0, 64, 129, 257}},    // as long as the padded lengths, and one more
      {1, 1, 130, {0, 1200}},          // several blocks, with a window
      {2, 1, 0, {0, 1, 2, 3, 131}},    // single tokens, and one block and more
      {1, 1, 2, {0, 200}},             // several blocks, of which a query sees two keys
  };
  for (const Case& c : cases) {
    SCOPED_TRACE("heads " + std::to_string(c.heads) + "/" + std::to_string(c.key_heads) + " window " +
                 std::to_string(c.window));
    const int64_t tokens = c.boundaries.back();
    const AttentionSpec spec{.scale = 0.25, .window = c.window};
    expect_matches_twin(
        [&](const auto& in) { return attention(in[0], in[1], in[2], spec, c.boundaries); },
        [&](const auto& in) { return composite::attention(in[0], in[1], in[2], spec, c.boundaries); },
        {random({tokens, c.heads, 16}), random({tokens, c.key_heads, 16}), random({tokens, c.key_heads, 16})});
  }
}

TEST(Attention, DocumentsDoNotSeeEachOther) {
  const AttentionSpec spec{.scale = 0.25, .window = 0};
  const at::Tensor q = random({30, 2, 16}).to(at::kFloat);
  const at::Tensor k = random({30, 1, 16}).to(at::kFloat);
  const at::Tensor v = random({30, 1, 16}).to(at::kFloat);
  at::Tensor k2 = k.clone();
  k2.narrow(0, 0, 10).fill_(100.0);
  const at::Tensor before = attention(q, k, v, spec, {0, 10, 30});
  const at::Tensor after = attention(q, k2, v, spec, {0, 10, 30});
  EXPECT_TRUE(at::equal(before.narrow(0, 10, 20), after.narrow(0, 10, 20)));
  EXPECT_FALSE(at::equal(before.narrow(0, 0, 10), after.narrow(0, 0, 10)));
}

TEST(Attention, NothingOfADocumentIsLeftInTheBuffersForTheNext) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);  // one workspace, and the longest document first
  const AttentionSpec spec{.scale = 0.25, .window = 0};
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    std::vector<at::Tensor> inputs{random({440, 2, 16}), random({440, 1, 16}), random({440, 1, 16})};
    for (at::Tensor& input : inputs) input.narrow(0, 0, 390).fill_(std::numeric_limits<double>::quiet_NaN());
    const auto attend = [&](const auto& in) { return attention(in[0], in[1], in[2], spec, {0, 390, 440}); };
    for (const at::Tensor& result : testing::run(attend, inputs, type, random({440, 2, 16}))) {
      EXPECT_TRUE(result.narrow(0, 390, 50).isfinite().all().item<bool>()) << type;
      EXPECT_TRUE(result.narrow(0, 0, 390).isnan().any().item<bool>()) << type;
    }
  }
  at::set_num_threads(threads);
}

TEST(AttentionWithPast, EqualsTheLastRowsOfTheWhole) {
  for (const int64_t window : {0, 6}) {
    const AttentionSpec spec{.scale = 0.25, .window = window};
    const at::Tensor q = random({700, 4, 16}).to(at::kFloat);
    const at::Tensor k = random({700, 2, 16}).to(at::kFloat);
    const at::Tensor v = random({700, 2, 16}).to(at::kFloat);
    const at::Tensor whole = composite::attention(q, k, v, spec, {0, 700});
    for (const int64_t last : {1, 3, 301, 700}) {  // the longer ones in parts
      testing::expect_close(attention_with_past(q.narrow(0, 700 - last, last), k, v, spec),
                            whole.narrow(0, 700 - last, last), testing::tolerance(at::kFloat), std::to_string(last));
    }
  }
}

// Three documents in a store with room for 40 tokens each, what lies past their ends far from zero.
TEST(AttentionOfLast, EqualsEachDocumentByItself) {
  const std::vector<int64_t> lengths = {33, 1, 12};
  for (const int64_t window : {0, 6, 20}) {
    const AttentionSpec spec{.scale = 0.25, .window = window};
    const at::Tensor q = random({3, 4, 16}).to(at::kFloat);
    const at::Tensor k = random({3, 2, 40, 16}).to(at::kFloat);
    const at::Tensor v = random({3, 2, 40, 16}).to(at::kFloat);
    for (int64_t i = 0; i < 3; ++i) {
      for (const at::Tensor& all : {k, v})
        all.select(0, i).narrow(1, lengths[static_cast<size_t>(i)], 40 - lengths[static_cast<size_t>(i)]).fill_(1e4);
    }
    const at::Tensor together = attention_of_last(q, k, v, spec, lengths);
    for (int64_t i = 0; i < 3; ++i) {
      const auto own = [&](const at::Tensor& all) {
        return all.select(0, i).narrow(1, 0, lengths[static_cast<size_t>(i)]).transpose(0, 1);
      };
      testing::expect_close(together.narrow(0, i, 1), attention_with_past(q.narrow(0, i, 1), own(k), own(v), spec),
                            testing::tolerance(at::kFloat), std::to_string(i));
    }
  }
}

TEST(AttentionOfLast, RefusesLengthsThatAreNotThere) {
  const at::Tensor q = random({2, 4, 16}).to(at::kFloat);
  const at::Tensor k = random({2, 2, 8, 16}).to(at::kFloat);
  for (const auto& lengths : std::vector<std::vector<int64_t>>{{}, {8}, {9, 1}, {0, 8}}) {
    EXPECT_THROW(attention_of_last(q, k, k, {}, lengths), c10::Error);
  }
}

TEST(Attention, RefusesBoundariesThatDoNotCoverTheTokens) {
  const at::Tensor x = random({8, 1, 16}).to(at::kFloat);
  for (const auto& boundaries : std::vector<std::vector<int32_t>>{{}, {0}, {0, 7}, {1, 8}, {0, 6, 5, 8}}) {
    EXPECT_THROW(attention(x, x, x, {}, boundaries), c10::Error);
  }
}

}  // namespace
}  // namespace fettle::ops
