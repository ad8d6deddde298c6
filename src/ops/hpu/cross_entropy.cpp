// SPDX-License-Identifier: Apache-2.0
#include "ops/hpu/cross_entropy.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/nll_loss_backward.h>
#include <ATen/ops/nll_loss_forward.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <vector>

#include "ops/cross_entropy_function.h"
#include "ops/linear_cross_entropy.h"

namespace fettle::ops::hpu {
namespace {

/// At least float32.
at::Tensor wide(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
}

/// The sum of a chunk's losses, and in place of its logits their gradient.
at::Tensor loss_and_gradient(at::Tensor& logits, const at::Tensor& labels, bool wants_gradient) {
  const at::Tensor log_probabilities = at::_log_softmax(wide(logits), 1, /*half_to_float=*/false);
  const auto [loss, weight] = at::nll_loss_forward(log_probabilities, labels, {}, at::Reduction::Sum, kIgnore);
  if (wants_gradient) {
    const at::Tensor picked = at::nll_loss_backward(at::ones({}, log_probabilities.options()), log_probabilities,
                                                    labels, {}, at::Reduction::Sum, kIgnore, weight);
    logits = at::_log_softmax_backward_data(picked, log_probabilities, 1, log_probabilities.scalar_type())
                 .to(logits.scalar_type());
  }
  return loss;
}

CrossEntropyParts compute(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                          const CrossEntropyWanted& wanted) {
  at::Tensor loss;
  at::Tensor d_weight;
  std::vector<at::Tensor> d_hidden;
  for (int64_t begin = 0; begin < hidden.size(0); begin += wanted.chunk_rows) {
    const int64_t size = std::min(wanted.chunk_rows, hidden.size(0) - begin);
    const at::Tensor chunk = hidden.narrow(0, begin, size);
    at::Tensor logits = at::mm(chunk, weight.t());
    const at::Tensor part =
        loss_and_gradient(logits, labels.narrow(0, begin, size), wanted.hidden_gradient || wanted.weight_gradient);
    loss = loss.defined() ? loss + part : part;
    if (wanted.hidden_gradient) d_hidden.push_back(at::mm(logits, weight));
    if (wanted.weight_gradient) {
      const at::Tensor share = at::mm(logits.t(), chunk);
      d_weight = d_weight.defined() ? d_weight.add_(share) : wide(share);
    }
  }
  return {loss.to(at::kFloat), d_hidden.empty() ? at::Tensor() : at::cat(d_hidden), d_weight};
}

}  // namespace

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                                int64_t chunk_rows) {
  return apply_cross_entropy(&compute, hidden, weight, labels, chunk_rows);
}

}  // namespace fettle::ops::hpu
