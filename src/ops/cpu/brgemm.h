// SPDX-License-Identifier: Apache-2.0
/// Products of blocks that lie in a core's cache: oneDNN's brgemm micro-kernels, through the face that libtorch
/// exports.
///
/// A left operand is plain rows. A right operand [K, N] is plain rows for float; for bfloat16, pairs of rows are
/// interleaved, [K/2][N][2], as the processors' dot-product instructions read it (cpu::pack_right makes it). oneDNN
/// compiles a kernel for every shape and thread: callers round their sizes.
#pragma once

#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace fettle::ops::cpu {

/// C [m, n] = A [m, k] · B [k, n], added to what C holds if `add`; k even.
struct Product {
  int64_t m, n, k;
  int64_t lda, ldb, ldc;
  bool add = false;
};
inline void multiply(const Product& size, const float* a, const float* b, float* c) {
  at::native::cpublas::brgemm(size.m, size.n, size.k, size.lda, size.ldb, size.ldc, size.add, a, b, c, false);
}
inline void multiply(const Product& size, const c10::BFloat16* a, const c10::BFloat16* b, float* c) {
  at::native::cpublas::brgemm(size.m, size.n, size.k, size.lda, size.ldb, size.ldc, size.add, a, b, c, true);
}

/// Whether there are micro-kernels for T (float or c10::BFloat16): a small product is tried, once. There are from AVX2
/// on for float and from AVX-512 BF16 on for bfloat16, unless ONEDNN_MAX_CPU_ISA says less.
template <typename T>
bool has_brgemm();
template <>
bool has_brgemm<float>();
template <>
bool has_brgemm<c10::BFloat16>();

/// Gives the thread's matrix unit back (AMX). After the last product of a thread.
inline void release_brgemm() {
  at::native::cpublas::brgemm_release();
}

}  // namespace fettle::ops::cpu
