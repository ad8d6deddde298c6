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
class GradientBuckets {
 public:
  /// `parameters`: contiguous float32 leaves in the order of the computation, the same on all ranks. `bucket_bytes`:
  /// what a bucket holds at most, unless one parameter alone is larger (torch: 25 MiB).
  /// Takes the post-accumulate hook of each parameter, which is one.
  GradientBuckets(std::shared_ptr<Group> group, std::vector<at::Tensor> parameters, int64_t bucket_bytes);
  /// Takes the hooks away. The gradients stay what they are.
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  /// Before the first backward of a step: every gradient is zero, in its bucket.
  void begin();
  /// The next backward is the step's last one. Left out by a rank that has no batch.
  void last_backward();
  /// After it: sends what was not sent, because a parameter took no part or the rank had no batch, and waits. Every
  /// .grad is then the sum over the ranks. Throws what Pending::wait throws.
  void finish();

 private:
  struct State;
  std::shared_ptr<State> state_;  ///< shared with the hooks
};

}  // namespace fettle::dist
