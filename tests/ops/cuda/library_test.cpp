// SPDX-License-Identifier: Apache-2.0
/// libfettle_cuda.so itself, as nvcc made it: it loads without a GPU and exports the whole table. What the kernels
/// compute is in kernels_test.cpp.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "ops/cuda/kernels.h"

namespace fettle::ops::cuda {
namespace {

TEST(CudaLibrary, LoadsWithoutAGpuAndExportsTheTable) {
  void* library = ::dlopen(FETTLE_CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << ::dlerror();
  auto* kernels = reinterpret_cast<decltype(&fettle_cuda_kernels)>(::dlsym(library, "fettle_cuda_kernels"));
  ASSERT_NE(kernels, nullptr) << ::dlerror();
  const KernelTable& table = *kernels();
  EXPECT_EQ(table.version, kKernelVersion);
  std::array<void*, sizeof(KernelTable) / sizeof(void*)> entries{};
  std::memcpy(entries.data(), &table, sizeof(table));
  for (const void* entry : entries) EXPECT_NE(entry, nullptr);
  EXPECT_EQ(table.swiglu({}, nullptr), nullptr) << "no elements, no launch";
  EXPECT_NE(table.dequantize({}, nullptr), nullptr) << "0 bits";
}

}  // namespace
}  // namespace fettle::ops::cuda
