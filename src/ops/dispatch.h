// SPDX-License-Identifier: Apache-2.0
/// How a front door picks its kernel: CPU kernels for float32 and bfloat16; the composite for everything else, and for
/// all once fused operations are switched off.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fettle::ops {

namespace detail {
inline std::atomic<bool> fused_ops = true;
}

/// false: every front door takes its composite twin, plain torch operations. Set once, before any tensor work.
inline void set_fused_ops(bool on) {
  detail::fused_ops = on;
}
inline bool uses_fused_ops() {
  return detail::fused_ops;
}

inline bool has_cpu_kernel(const at::Tensor& x) {
  return uses_fused_ops() && x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

/// Calls `run` with a value of the element type: run(float{}) or run(c10::BFloat16{}). Only after has_cpu_kernel.
template <typename Run>
void with_element_type(const at::Tensor& x, Run&& run) {
  if (x.scalar_type() == at::kFloat) {
    run(float{});
  } else {
    run(c10::BFloat16{});
  }
}

/// at::parallel_for over rows of `columns` elements, in pieces of at least 16,384 elements: below that, waking a thread
/// costs more than it saves.
template <typename Run>
void parallel_rows(int64_t rows, int64_t columns, const Run& run) {
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)), run);
}

}  // namespace fettle::ops
