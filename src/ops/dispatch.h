// SPDX-License-Identifier: Apache-2.0
/// How a front door picks its kernel: CPU kernels for float32 and bfloat16, CUDA kernels likewise once their table is
/// set; the composite for everything else, and for all once fused operations are switched off.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>

#include "ops/cuda/kernels.h"

namespace fettle::ops {

namespace detail {
inline std::atomic<bool> fused_ops = true;
inline std::atomic<const cuda::KernelTable*> cuda_kernels = nullptr;

inline bool has_kernel_type(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
}

/// c10::Stream of torch 2.10, which Gaudi's images hold, does not tell what CUDA knows it by: its composites run there.
template <typename Stream>
constexpr bool has_native_handle = requires(const Stream& stream) {
  stream.native_handle();
};

template <typename Stream>
void* native_handle(const Stream& stream) {
  if constexpr (has_native_handle<Stream>) {
    return stream.native_handle();
  } else {
    return nullptr;
  }
}
}  // namespace detail

/// false: every front door takes its composite twin, plain torch operations. Set once, before any tensor work.
inline void set_fused_ops(bool on) {
  detail::fused_ops = on;
}
inline bool uses_fused_ops() {
  return detail::fused_ops;
}

/// The table that libfettle_cuda.so exports, or null for none. Set once, before any tensor work.
inline void set_cuda_kernels(const cuda::KernelTable* kernels) {
  TORCH_CHECK(kernels == nullptr || kernels->version == cuda::kKernelVersion,
              "libfettle_cuda.so has kernels of version ", kernels->version, ", and this program is for version ",
              cuda::kKernelVersion);
  detail::cuda_kernels = kernels;
}

inline bool has_cpu_kernel(const at::Tensor& x) {
  return uses_fused_ops() && x.is_cpu() && detail::has_kernel_type(x);
}
inline bool has_cuda_kernel(const at::Tensor& x) {
  return detail::has_native_handle<c10::Stream> && uses_fused_ops() && x.is_cuda() && detail::has_kernel_type(x) &&
         detail::cuda_kernels != nullptr;
}
inline bool has_kernel(const at::Tensor& x) {
  return has_cpu_kernel(x) || has_cuda_kernel(x);
}

/// Launches a kernel, e.g. &cuda::KernelTable::swiglu, on the current stream of x's device. Only after has_cuda_kernel.
template <typename Arguments>
void launch(cuda::Launch<Arguments> cuda::KernelTable::*kernel, const at::Tensor& x,
            const std::type_identity_t<Arguments>& arguments) {
  const c10::DeviceGuard guard(x.device());
  const c10::impl::VirtualGuardImpl device(x.device().type());
  const cuda::Failure failure =
      (detail::cuda_kernels.load()->*kernel)(arguments, detail::native_handle(device.getStream(x.device())));
  TORCH_CHECK(failure == nullptr, "a CUDA kernel did not launch: ", failure);
}
inline cuda::Type kernel_type(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? cuda::Type::kFloat : cuda::Type::kBFloat16;
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
