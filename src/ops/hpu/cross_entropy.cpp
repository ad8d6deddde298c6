// SPDX-License-Identifier: Apache-2.0
#include "ops/hpu/cross_entropy.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/nll_loss_backward.h>
#include <ATen/ops/nll_loss_forward.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "ops/linear_cross_entropy.h"

namespace fettle::ops::hpu {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Wanted {
  bool hidden_gradient;
  bool weight_gradient;
  int64_t chunk_rows;
};

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

// The gradients are computed in the forward: nothing of V columns is kept for the backward, but for the weight's own.
class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& weight,
                            const at::Tensor& labels, Wanted wanted) {
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
    context->saved_data["d_hidden"] = d_hidden.empty() ? at::Tensor() : at::cat(d_hidden);
    context->saved_data["d_weight"] = d_weight;
    context->saved_data["type"] = weight.scalar_type();
    return loss.to(at::kFloat);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor& scale = gradients[0];
    const at::Tensor d_hidden = context->saved_data["d_hidden"].toTensor();
    const at::Tensor d_weight = context->saved_data["d_weight"].toTensor();
    return {d_hidden.defined() ? d_hidden * scale : at::Tensor(),
            d_weight.defined() ? (d_weight * scale).to(context->saved_data["type"].toScalarType()) : at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                                int64_t chunk_rows) {
  const bool differentiable = at::GradMode::is_enabled();
  const Wanted wanted{.hidden_gradient = differentiable && hidden.requires_grad(),
                      .weight_gradient = differentiable && weight.requires_grad(),
                      .chunk_rows = chunk_rows};
  return LinearCrossEntropy::apply(hidden, weight, labels, wanted);
}

}  // namespace fettle::ops::hpu
