// SPDX-License-Identifier: Apache-2.0
#include "ops/vector_math.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>

namespace fettle::ops {

void settle_vector_math() {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor one = at::ones({1}, type);
    for (const auto function : {&at::Tensor::acos, &at::Tensor::asin, &at::Tensor::atan, &at::Tensor::cos,
                                &at::Tensor::erf, &at::Tensor::erfc, &at::Tensor::erfinv, &at::Tensor::exp,
                                &at::Tensor::log, &at::Tensor::log10, &at::Tensor::log2, &at::Tensor::sin,
                                &at::Tensor::sqrt, &at::Tensor::tan, &at::Tensor::tanh, &at::Tensor::trunc}) {
      (one.*function)();
    }
  }
}

}  // namespace fettle::ops
