// SPDX-License-Identifier: Apache-2.0
#include "ops/gram.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>

#include "ops/cpu/brgemm.h"
#include "ops/dispatch.h"

/// MKL's, which libtorch's builds for x86 contain and export; null in others. C = alpha·A·B + beta·C, A and B bfloat16,
/// C float.
extern "C" void cblas_gemm_bf16bf16f32(int layout, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                                       const void* a, int lda, const void* b, int ldb, float beta, float* c, int ldc)
    __attribute__((weak));

namespace fettle::ops {

void add_gram(const at::Tensor& sums, const at::Tensor& x) {
  if (x.scalar_type() == at::kBFloat16 && has_cpu_kernel(x) && cpu::has_brgemm<c10::BFloat16>() &&
      cblas_gemm_bf16bf16f32 != nullptr) {
    constexpr int kRowMajor = 101;
    constexpr int kPlain = 111;
    constexpr int kTransposed = 112;
    const at::Tensor rows = x.contiguous();
    const int tokens = static_cast<int>(rows.size(0));
    const int columns = static_cast<int>(rows.size(1));
    cblas_gemm_bf16bf16f32(kRowMajor, kTransposed, kPlain, columns, columns, tokens, 1, rows.const_data_ptr(), columns,
                           rows.const_data_ptr(), columns, 1, sums.mutable_data_ptr<float>(), columns);
    return;
  }
  const at::Tensor wide = x.to(at::kFloat);
  sums.addmm_(wide.t(), wide);
}

}  // namespace fettle::ops
