// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/brgemm.h"

#include <array>
#include <exception>

#include "ops/cpu/kernels.h"

namespace fettle::ops::cpu {
namespace {

// Whole numbers, which both types hold and add exactly.
template <typename T>
bool multiplies() {
  constexpr int64_t kSize = 16;
  std::array<T, kSize * kSize> a;
  std::array<T, kSize * kSize> b;
  std::array<T, kSize * kSize> packed;
  std::array<float, kSize * kSize> c{};
  for (int64_t i = 0; i < kSize * kSize; ++i) {
    a[i] = static_cast<T>(static_cast<float>(i % 7));
    b[i] = static_cast<T>(static_cast<float>(i % 5));
  }
  pack_right(b.data(), packed.data(), {kSize, kSize, kSize, kSize, kSize});
  try {
    multiply({kSize, kSize, kSize, kSize, kSize, kSize}, a.data(), packed.data(), c.data());
    release_brgemm();
  } catch (const std::exception&) {  // torch: not for this processor; oneDNN: no kernel could be made
    return false;
  }
  for (int64_t i = 0; i < kSize * kSize; ++i) {
    float expected = 0;
    for (int64_t k = 0; k < kSize; ++k) {
      expected += static_cast<float>(a[i / kSize * kSize + k]) * static_cast<float>(b[k * kSize + i % kSize]);
    }
    if (c[i] != expected) return false;
  }
  return true;
}

}  // namespace

template <>
bool has_brgemm<float>() {
  static const bool found = multiplies<float>();
  return found;
}
template <>
bool has_brgemm<c10::BFloat16>() {
  static const bool found = multiplies<c10::BFloat16>();
  return found;
}

}  // namespace fettle::ops::cpu
