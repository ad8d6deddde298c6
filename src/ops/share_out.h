// SPDX-License-Identifier: Apache-2.0
/// Units of work of unequal size for threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "ops/cpu/brgemm.h"
#include "ops/dispatch.h"

namespace fettle::ops {

/// has_cpu_kernel, and the processor has the micro-kernels for its type.
inline bool has_cpu_products(const at::Tensor& x) {
  if (!has_cpu_kernel(x)) return false;
  return x.scalar_type() == at::kFloat ? cpu::has_brgemm<float>() : cpu::has_brgemm<c10::BFloat16>();
}

/// Buffers of a thread, for units that need none.
struct NoWorkspace {};

/// Calls work(unit, its thread's workspace) for each unit, in order, by whichever thread is free. Who takes a unit must
/// not change the result. Units may use cpu::multiply.
template <typename Workspace, typename Unit, typename Work>
void share_out(const std::vector<Unit>& units, const Work& work) {
  std::atomic<size_t> next = 0;
  const auto threads = std::min<int64_t>(at::get_num_threads(), static_cast<int64_t>(units.size()));
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    Workspace workspace;
    for (int64_t thread = begin; thread < end; ++thread) {
      for (size_t i = next++; i < units.size(); i = next++) work(units[i], workspace);
    }
    cpu::release_brgemm();
  });
}

}  // namespace fettle::ops
