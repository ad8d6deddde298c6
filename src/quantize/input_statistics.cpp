// SPDX-License-Identifier: Apache-2.0
#include "quantize/input_statistics.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "ops/gram.h"

namespace fettle::quantize {

InputSums::InputSums(int64_t columns, at::Device device)
    : products_(at::zeros({columns, columns}, at::dtype(at::kFloat).device(device))),
      absolute_(at::zeros({columns}, at::dtype(at::kFloat).device(device))) {}

void InputSums::add(const at::Tensor& x) {
  ops::add_gram(products_, x);
  absolute_ += x.abs().sum(0, /*keepdim=*/false, at::kFloat);
  tokens_ += x.size(0);
}

InputStatistics InputSums::mean() {
  const auto tokens = static_cast<double>(tokens_);
  return {products_.div_(tokens), absolute_.div_(tokens)};
}

double output_error(const at::Tensor& change, const at::Tensor& hessian) {
  return at::mm(change, hessian).mul_(change).sum().item<double>();
}

}  // namespace fettle::quantize
