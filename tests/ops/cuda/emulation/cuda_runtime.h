// SPDX-License-Identifier: Apache-2.0
/// Stands in for CUDA's header of this name, so that the .cu files compile as plain C++ and their kernels run on a
/// processor: block after block, the threads of a block as fibers that change at __syncthreads and __shfl_*_sync. A
/// warp runs until it waits for another, so what a missing barrier lets it read or overwrite too early shows. It is
/// stricter than a GPU: a barrier that a thread of the block (or a lane of the mask) never reaches is an error, not
/// luck; and sanitizers see every access. It does not show races between blocks or within a warp, nor time.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __shared__ static  // one block at a time
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}  // NOLINT: as CUDA's
};

inline dim3 threadIdx;
inline dim3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;

using std::max;
using std::min;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
const char* cudaGetErrorString(cudaError_t error);

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace cuda_emulation {

/// How the next launches run. Results must not depend on it.
struct Schedule {
  unsigned most_blocks = UINT32_MAX;  ///< of a launch in x; a kernel strides over what is left
  bool last_thread_first = false;     ///< the order in which warps, and their threads, take their turn
};
inline Schedule schedule;

/// Launches so far, and the stream of the last.
inline int launches = 0;
inline cudaStream_t last_stream = nullptr;

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

void wait_for_block();
/// The 4 bytes that lane ^ lane_mask of the warp brings. Every lane of the warp calls it.
uint32_t exchange(unsigned lanes, uint32_t value, int lane_mask);

}  // namespace cuda_emulation

inline void __syncthreads() {
  cuda_emulation::wait_for_block();
}

template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int lane_mask) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = cuda_emulation::exchange(lanes, bits, lane_mask);
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  return cuda_emulation::run(*config, [&] { kernel(static_cast<Parameters>(arguments)...); });
}
