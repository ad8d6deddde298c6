// SPDX-License-Identifier: Apache-2.0
#include "ops/weight.h"

namespace fettle::ops {
namespace {

template <typename... Run>
struct Cases : Run... {
  using Run::operator()...;
};
template <typename... Run>
Cases(Run...) -> Cases<Run...>;  // clang 14 does not find it

}  // namespace

int64_t rows(const Weight& weight) {
  return std::visit(
      Cases{[](const at::Tensor& plain) { return plain.size(0); }, [](const auto& few_bits) { return few_bits.rows; }},
      weight);
}

int64_t columns(const Weight& weight) {
  return std::visit(Cases{[](const at::Tensor& plain) { return plain.size(1); },
                          [](const auto& few_bits) { return few_bits.columns; }},
                    weight);
}

int64_t bytes(const Weight& weight) {
  return std::visit(Cases{[](const at::Tensor& plain) { return static_cast<int64_t>(plain.nbytes()); },
                          [](const auto& few_bits) { return few_bits.bytes(); }},
                    weight);
}

at::Tensor dense(const Weight& weight, at::ScalarType type) {
  return std::visit(Cases{[](const at::Tensor& plain) { return plain; },
                          [type](const auto& few_bits) { return dequantize(few_bits, type); }},
                    weight);
}

Weight moved(const Weight& weight, at::Device device) {
  Weight result = weight;
  const auto move = [device](auto&... parts) { ((parts = parts.defined() ? parts.to(device) : parts), ...); };
  std::visit(Cases{[&](at::Tensor& plain) { move(plain); },
                   [&](QuantizedWeight& quantized) { move(quantized.codes, quantized.scales); },
                   [&](GroupedWeight& grouped) { move(grouped.codes, grouped.scales, grouped.zeros, grouped.order); }},
             result);
  return result;
}

}  // namespace fettle::ops
