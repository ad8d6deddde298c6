// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>

#include "base/error.h"
#include "device.h"
#include "device/cuda.h"
#include "ops/dispatch.h"

namespace fettle::ops::testing {

std::string start_cuda() {
  static const std::string reason = []() -> std::string {
    device::CudaFolders folders = device::cuda_folders();
    folders.kernels = {FETTLE_CUDA_FOLDER};
    try {
      set_cuda_kernels(static_cast<const cuda::KernelTable*>(device::load_cuda(folders).kernels));
    } catch (const Error& error) {
      return error.what();
    }
    return {};
  }();
  return reason;
}

void stop_cuda() {
  set_cuda_kernels(nullptr);
}

std::string why_no_device() {
  return start_cuda();
}

bool draws_as_the_cpu() {
  return false;
}

std::optional<int64_t> waits_for_device() {
  return {};
}

}  // namespace fettle::ops::testing
