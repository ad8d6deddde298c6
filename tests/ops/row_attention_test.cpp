// SPDX-License-Identifier: Apache-2.0
/// Attention over filled rows against attention over documents, in float64.
#include "ops/row_attention.h"

#include <ATen/ops/all.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/isfinite.h>

#include "reference.h"

namespace fettle::ops {
namespace {

using testing::expect_matches_twin;
using testing::random;

/// The number of each token's document, as RowMasks takes it.
at::Tensor documents_of(const std::vector<int32_t>& boundaries) {
  at::Tensor documents = at::empty({boundaries.back()}, at::kInt);
  for (size_t i = 0; i + 1 < boundaries.size(); ++i) {
    documents.narrow(0, boundaries[i], boundaries[i + 1] - boundaries[i]).fill_(static_cast<int64_t>(i));
  }
  return documents;
}

TEST(RowAttention, MatchesAttentionOverDocuments) {
  struct Case {
    int64_t heads;
    int64_t key_heads;
    int64_t window;
    std::vector<int32_t> boundaries;  // of rows of 12 tokens
  };
  const std::vector<Case> cases{{2, 2, 0, {0, 12}},
                                {4, 2, 0, {0, 3, 12, 24}},
                                {6, 3, 4, {0, 1, 2, 12, 23, 24, 36}},
                                {2, 1, 12, {0, 12, 20, 24}},
                                {1, 1, 1, {0, 5, 12}}};
  for (const Case& c : cases) {
    SCOPED_TRACE("heads " + std::to_string(c.heads) + "/" + std::to_string(c.key_heads) + " window " +
                 std::to_string(c.window));
    const int64_t tokens = c.boundaries.back();
    const AttentionSpec spec{.scale = 0.25, .window = c.window};
    const auto in_rows = [&](const auto& in) {
      RowMasks masks(12, documents_of(c.boundaries), tokens / 12, at::kCPU);
      return attention(in[0], in[1], in[2], spec, masks);
    };
    expect_matches_twin(
        in_rows, [&](const auto& in) { return composite::attention(in[0], in[1], in[2], spec, c.boundaries); },
        {random({tokens, c.heads, 16}), random({tokens, c.key_heads, 16}), random({tokens, c.key_heads, 16})});
  }
}

TEST(RowAttention, WhatFollowsADocumentInItsRowChangesNothingInIt) {
  const at::Tensor query = random({24, 2, 8});
  const at::Tensor key = random({24, 2, 8});
  const at::Tensor value = random({24, 2, 8});
  for (const int64_t window : {0, 3}) {
    const AttentionSpec spec{.scale = 0.3, .window = window};
    RowMasks masks(12, at::Tensor(), 2, at::kCPU);
    const at::Tensor mixed = attention(query, key, value, spec, masks);
    const at::Tensor expected = composite::attention(query, key, value, spec, {0, 7, 12, 24});
    EXPECT_EQ(masks.visible(window).defined(), window > 0);
    EXPECT_LE((mixed - expected).narrow(0, 0, 7).abs().max().item<double>(), 1e-12);
    EXPECT_LE((mixed - expected).narrow(0, 12, 12).abs().max().item<double>(), 1e-12);
  }
}

TEST(RowAttention, AMaskIsMadeOnceAndHasNoInfinity) {
  RowMasks masks(4, documents_of({0, 1, 4}), 1, at::kCPU);
  const at::Tensor& added = masks.added(0, at::kBFloat16);
  EXPECT_EQ(added.data_ptr(), masks.added(0, at::kBFloat16).data_ptr());
  EXPECT_TRUE(added.isfinite().all().item<bool>());
  EXPECT_TRUE(at::equal(added == 0, masks.visible(0)));
}

}  // namespace
}  // namespace fettle::ops
