// SPDX-License-Identifier: Apache-2.0
/// Finding and loading what computes on an NVIDIA GPU. The program links none of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace fettle::device {

/// Where the libraries are looked for.
struct CudaFolders {
  std::filesystem::path torch;                 ///< of libtorch_cuda.so
  std::vector<std::filesystem::path> kernels;  ///< of libfettle_cuda.so, in this order
};

/// libtorch_cuda.so beside the libtorch_cpu.so in use; libfettle_cuda.so beside the program, or in ../lib from there.
CudaFolders cuda_folders();

struct CudaLibraries {
  const void*
      kernels;   ///< null or const ops::cuda::KernelTable*, for ops::set_cuda_kernels (this room does not know ops)
  int64_t gpus;  ///< that this process sees (CUDA_VISIBLE_DEVICES), at least 1
};

/// Loads both libraries, for as long as the process lives. Call once, before any tensor work: torch asks only once
/// whether it has CUDA. In a process that has CUDA from elsewhere nothing is loaded, and there are no kernels. Throws
/// Error, in one line each: kUsage where a library is missing or cannot be loaded, kUnavailable where there is no
/// driver or GPU.
CudaLibraries load_cuda(const CudaFolders& folders = cuda_folders());

}  // namespace fettle::device
