// SPDX-License-Identifier: Apache-2.0
#include "ops/hpu/fp8.h"

#include <ATen/ops/abs.h>

#include <vector>

#include "ops/hpu/operator.h"

namespace fettle::ops::hpu {
namespace {

using c10::IValue;

struct Operators {
  Operator to;
  Operator from;
  Operator product;
};

const Operators& operators() {
  static const Operators found{
      Operator("hpu::cast_to_fp8_v2(Tensor input, Tensor? scale=None, bool stochastic_rounding=False, "
               "bool is_amax=False, ScalarType dtype=None, int[]? scale_shape=None) -> (Tensor, Tensor)"),
      Operator(
          "hpu::cast_from_fp8(Tensor input, Tensor? scale, ScalarType out_dtype, int[]? scale_shape=None) -> Tensor"),
      Operator("hpu::fp8_gemm_v2(Tensor A, bool trans_A, Tensor B, bool trans_B, Tensor? D, ScalarType out_dtype, "
               "Tensor? A_scale_inv=None, Tensor? B_scale_inv=None, Tensor? bias=None, bool accumulate=False, "
               "int[]? B_scale_shape=None) -> Tensor")};
  return found;
}

at::Tensor matrix(const QuantizedWeight& weight) {
  return weight.codes.view({weight.rows, weight.columns});
}

}  // namespace

bool has_fp8(const at::Tensor& x) {
  return may_use_bridge(x) && operators().to.is_usable() && operators().from.is_usable() &&
         operators().product.is_usable();
}

Fp8 to_fp8(const at::Tensor& x) {
  constexpr double kSmallest = 1e-30;  // all zero
  const at::Tensor scale = at::abs(x).amax().to(at::kFloat).div_(kLargestFp8).clamp_min_(kSmallest).view({1});
  const std::vector<IValue> results = operators().to.call(
      {x, scale.reciprocal(), /*stochastic_rounding=*/false, /*is_amax=*/false, at::kFloat8_e4m3fn, IValue()});
  return {results[0].toTensor(), scale};
}

at::Tensor fp8_linear(const Fp8& x, const QuantizedWeight& weight, at::ScalarType type) {
  return operators()
      .product
      .call(
          {x.values, false, matrix(weight), true, IValue(), type, x.scale, weight.scales, IValue(), false, IValue()})[0]
      .toTensor();
}

at::Tensor fp8_dense(const QuantizedWeight& weight, at::ScalarType type) {
  return operators().from.call({matrix(weight), weight.scales, type, IValue()})[0].toTensor();
}

}  // namespace fettle::ops::hpu
