// SPDX-License-Identifier: Apache-2.0
/// Gradients of all ranks, summed while the backward still runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "dist/group.h"

namespace fettle::dist {

/// The gradients live as views in a few flat tensors, the buckets. As soon as the last backward of a step has
/// accumulated all gradients of a bucket, its sum over the ranks starts, and the backward goes on with the layers
/// below. After torch's DistributedDataParallel (torch/csrc/distributed/c10d/reducer.cpp), with its order: the backward
/// meets the last parameters first, and every rank sends the buckets in the order of their index, whatever order they
/// are ready in. For a group of one process this only clears the gradients.
///
/// With owners the sum of a bucket arrives at the rank that owns its parameters alone, after every backward, and no
/// other rank keeps the gradient: a rank holds the gradients of what it owns and a few buckets on their way (ZeRO's
/// stage 2). All ranks then call begin_batch and end_batch equally often.
class GradientBuckets {
 public:
  /// `parameters`: float32 leaves, whose values are not looked at, in the order of the computation, the same on all
  /// ranks. `bucket_bytes`: what a bucket holds at most, unless one parameter alone is larger (torch: 25 MiB).
  /// `owners`: a rank for each parameter; empty: every rank gets all sums. Takes the post-accumulate hook of each
  /// parameter, which is one.
  GradientBuckets(std::shared_ptr<Group> group, std::vector<at::Tensor> parameters, int64_t bucket_bytes,
                  const std::vector<int64_t>& owners = {});
  /// Takes the hooks away. The gradients stay what they are.
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  /// Before the first backward of a step: every gradient that this rank keeps is zero, in its bucket.
  void begin();
  /// Before a backward. `is_last`: of the step; left out by a rank that has no batch.
  void begin_batch(bool is_last);
  /// After it, or in its place on a rank that has no batch. With owners: sends what was not sent and waits. Throws what
  /// Pending::wait throws.
  void end_batch();
  /// After the last: sends what was not sent, because a parameter took no part or the rank had no batch, and waits.
  /// Every .grad that is kept is then the sum over the ranks, the others are undefined. Throws what Pending::wait
  /// throws.
  void finish();

  /// Of the gradients that this rank holds now.
  [[nodiscard]] int64_t bytes() const;

 private:
  struct State;
  std::shared_ptr<State> state_;  ///< shared with the hooks
};

/// The sum over the ranks of the gradients that the backwards of a step have left, at its end: through one flat tensor,
/// or a few of a gigabyte. For a device that compiles graphs, where sending a part during the backward would cut its
/// graph, and where views of a flat tensor that are written to are copies of all of it. A gradient that is undefined
/// counts as zero. Throws what Pending::wait throws.
void sum_gradients(Group& group, const std::vector<at::Tensor>& parameters);

}  // namespace fettle::dist
