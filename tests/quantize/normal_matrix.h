// SPDX-License-Identifier: Apache-2.0
/// Random matrices for tests.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/randn.h>

namespace fettle::quantize {

inline at::Tensor normal_matrix(int64_t rows, int64_t columns, uint64_t seed) {
  return at::randn({rows, columns}, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
}

}  // namespace fettle::quantize
