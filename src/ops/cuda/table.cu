// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/device.cuh"

namespace fettle::ops::cuda {

extern "C" __attribute__((visibility("default"))) const KernelTable* fettle_cuda_kernels() {
  static constexpr KernelTable kTable{.version = kKernelVersion,
                                      .rms_norm = rms_norm,
                                      .rms_norm_backward = rms_norm_backward,
                                      .rotary = rotary,
                                      .swiglu = swiglu,
                                      .swiglu_backward = swiglu_backward,
                                      .cross_entropy = cross_entropy,
                                      .dequantize = dequantize};
  return &kTable;
}

}  // namespace fettle::ops::cuda
