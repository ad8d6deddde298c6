// SPDX-License-Identifier: Apache-2.0
#include "quantize/rounding.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/where.h>

#include <algorithm>

namespace fettle::quantize {
namespace {

/// [O, C] as [O, G, g].
at::Tensor grouped(const at::Tensor& matrix, int64_t groups) {
  return matrix.reshape({matrix.size(0), groups, matrix.size(1) / groups});
}

/// As a number of the type that scales are stored in, and never 0: a group of zeros may have any scale, and one of
/// weights that underflow keeps its sign.
at::Tensor storable(const at::Tensor& scales, const Scheme& scheme) {
  return scales.clamp_min(smallest_scale(scheme.scale_type)).to(scheme.scale_type).to(at::kFloat);
}

template <typename T>
std::vector<T> elements(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.contiguous().cpu();
  return {flat.const_data_ptr<T>(), flat.const_data_ptr<T>() + flat.numel()};
}

}  // namespace

Ranges ranges_of(const at::Tensor& lowest, const at::Tensor& highest, const Scheme& scheme) {
  const double steps = scheme.largest_code();
  if (scheme.symmetric) {
    const at::Tensor scales = storable(at::maximum(-lowest, highest) * (2 / steps), scheme);
    return {scales, at::full_like(scales, 1 << (scheme.bits - 1))};
  }
  const at::Tensor scales = storable((highest - lowest) / steps, scheme);
  return {scales, (-lowest / scales).round_().clamp_(scheme.lowest_zero, steps)};
}

Ranges find_ranges(const at::Tensor& weight, const Scheme& scheme) {
  const at::Tensor groups = grouped(weight, weight.size(1) / scheme.group_of(weight.size(1)));
  return ranges_of(groups.amin(-1).clamp_max_(0), groups.amax(-1).clamp_min_(0), scheme);
}

RoundedWeight round_to(const at::Tensor& weight, const Ranges& ranges, const Scheme& scheme) {
  const at::Tensor groups = grouped(weight, ranges.scales.size(1));
  const at::Tensor codes =
      (groups / ranges.scales.unsqueeze(-1)).round_().add_(ranges.zeros.unsqueeze(-1)).clamp_(0, scheme.largest_code());
  return {codes.to(at::kByte).view(weight.sizes()), ranges, {}};
}

RoundedWeight rtn(const at::Tensor& weight, const Scheme& scheme) {
  return round_to(weight, find_ranges(weight, scheme), scheme);
}

at::Tensor RoundedWeight::values() const {
  if (group_of.defined()) {
    const at::Tensor index = group_of.to(at::kLong);
    return (codes.to(at::kFloat) - ranges.zeros.index_select(1, index)) * ranges.scales.index_select(1, index);
  }
  const at::Tensor groups = grouped(codes.to(at::kFloat), ranges.scales.size(1));
  return ((groups - ranges.zeros.unsqueeze(-1)) * ranges.scales.unsqueeze(-1)).view(codes.sizes());
}

hub::QuantizedMatrix to_matrix(const RoundedWeight& rounded, const Scheme& scheme) {
  const int64_t columns = rounded.codes.size(1);
  hub::QuantizedMatrix matrix{
      .bits = scheme.bits, .rows = rounded.codes.size(0), .columns = columns, .group = scheme.group_of(columns)};
  matrix.codes = elements<uint8_t>(rounded.codes);
  matrix.scales = elements<float>(rounded.ranges.scales);
  if (!scheme.symmetric) matrix.zeros = elements<uint8_t>(rounded.ranges.zeros.to(at::kByte));
  if (rounded.group_of.defined()) matrix.group_of = elements<int32_t>(rounded.group_of);
  return matrix;
}

}  // namespace fettle::quantize
