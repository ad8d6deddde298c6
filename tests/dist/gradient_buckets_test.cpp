// SPDX-License-Identifier: Apache-2.0
#include "dist/gradient_buckets.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>

#include "dist/ranks.h"

namespace fettle::dist {
namespace {

constexpr int64_t kWidth = 8;
constexpr int64_t kLayers = 6;

/// A few layers of whole numbers: every sum is exact in float32, in any order.
struct Net {
  std::vector<at::Tensor> weights;

  Net() {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      at::Tensor weight = at::full({kWidth, kWidth}, 0.0, at::kFloat);
      for (int64_t i = 0; i < kWidth; ++i) weight[i][(i + layer) % kWidth] = static_cast<double>(i % 2 == 0 ? 1 : -1);
      weights.push_back(weight.requires_grad_(true));
    }
  }
  /// Loss of micro-batch `number`. Layer 2 is used twice; odd micro-batches leave out layer 4.
  [[nodiscard]] at::Tensor loss(int64_t number) const {
    at::Tensor x = at::full({3, kWidth}, static_cast<double>(number + 1), at::kFloat);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      if (layer == 4 && number % 2 == 1) continue;
      x = at::mm(x, weights[static_cast<size_t>(layer)]).add(static_cast<double>(layer));
      if (layer == 2) x = at::mm(x, weights[2]);
    }
    return x.sum();
  }
};

/// A weight that took no part in a single process has none.
at::Tensor gradient_of(const at::Tensor& weight) {
  return weight.grad().defined() ? weight.grad() : at::zeros_like(weight);
}

/// The gradients of these micro-batches in one process, without buckets.
std::vector<at::Tensor> expected_gradients(int64_t first, int64_t count) {
  const Net net;
  for (int64_t number = first; number < first + count; ++number) net.loss(number).backward();
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& weight : net.weights) gradients.push_back(gradient_of(weight));
  return gradients;
}

/// `owners` empty: all are kept.
void require_equal(const Net& net, const std::vector<at::Tensor>& expected, const std::vector<int64_t>& owners,
                   const Group& group, const std::string& where) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool is_kept = owners.empty() || group.size() == 1 || owners[i] == group.rank();
    const bool is_right =
        is_kept ? at::equal(gradient_of(net.weights[i]), expected[i]) : !net.weights[i].grad().defined();
    if (!is_right) throw Error(ExitCode::kInternal, fmt::format("{}: the gradient of weight {} differs", where, i));
  }
}

/// Two steps of `accumulation` micro-batches a rank with buckets of `bucket_bytes`; in the third, short step only the
/// even ranks have a batch, and one alone.
void train_steps(const std::shared_ptr<Group>& group, int64_t accumulation, int64_t bucket_bytes,
                 const std::vector<int64_t>& owners) {
  const Net net;
  GradientBuckets buckets(group, net.weights, bucket_bytes, owners);
  const int64_t per_step = accumulation * group->size();
  const auto where = [&](const char* step) {
    return fmt::format("{}, accumulation {}, buckets of {}, {} owners", step, accumulation, bucket_bytes,
                       owners.size());
  };
  for (int64_t step = 0; step < 2; ++step) {
    buckets.begin();
    for (int64_t i = 0; i < accumulation; ++i) {
      const at::Tensor loss = net.loss(step * per_step + i * group->size() + group->rank());
      buckets.begin_batch(i + 1 == accumulation);
      loss.backward();
      buckets.end_batch();
    }
    buckets.finish();
    require_equal(net, expected_gradients(step * per_step, per_step), owners, *group, where("a step"));
  }
  buckets.begin();
  if (group->rank() % 2 == 0) {
    const at::Tensor loss = net.loss(2 * per_step);
    buckets.begin_batch(true);
    loss.backward();
  }
  buckets.end_batch();
  buckets.finish();
  std::vector<at::Tensor> expected = expected_gradients(2 * per_step, 1);
  for (at::Tensor& gradient : expected) gradient.mul_((group->size() + 1) / 2);
  require_equal(net, expected, owners, *group, where("the short step"));
}

/// One weight, one layer, two, everything.
constexpr int64_t kBucketBytes[] = {1, kWidth* kWidth * 4, 2 * kWidth* kWidth * 4, 25 << 20};

const RankFunction kSteps("train_steps", [](const RankSetup& setup) {
  const auto group = Group::join(setup.launch(), setup.options());
  for (const int64_t bytes : kBucketBytes) {
    for (const int64_t accumulation : {1, 2}) {
      train_steps(group, accumulation, bytes, {});
      std::vector<int64_t> owners;
      for (int64_t layer = 0; layer < kLayers; ++layer) owners.push_back(layer * group->size() / kLayers);
      train_steps(group, accumulation, bytes, owners);
    }
  }
  group->leave();
  say("equal");
});

class Buckets : public ::testing::TestWithParam<int64_t> {};

TEST_P(Buckets, SumTheGradientsOfAllRanks) {
  Ranks run({.function = "train_steps", .world_size = GetParam()});
  for (const Outcome& outcome : run.end()) {
    EXPECT_EQ(outcome.code, 0) << outcome.report << outcome.err;
    EXPECT_EQ(outcome.report, "equal\n");
  }
}
INSTANTIATE_TEST_SUITE_P(Sizes, Buckets, ::testing::Values(1, 2, 4));

}  // namespace
}  // namespace fettle::dist
