// SPDX-License-Identifier: Apache-2.0
#include "ops/hpu/attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <vector>

#include "ops/hpu/operator.h"

namespace fettle::ops::hpu {
namespace {

using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kNoDropout = 0;
const std::string kSoftmaxMode = "none";

const Operator& forward_operator() {
  static const Operator found(
      "hpu::sdpa_recomp_fwd(Tensor q, Tensor k, Tensor v, Tensor? attention_mask, float p, float scale, "
      "bool is_causal, bool requires_backward, str softmax_mode, Tensor? valid_seq_len, str seq_padding_type) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  return found;
}
const Operator& backward_operator() {
  static const Operator found(
      "hpu::sdpa_recomp_bwd(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? attention_mask, Tensor m, Tensor linv, "
      "Tensor? seed, bool is_causal, float p, float scale, str softmax_mode, Tensor fwd_out) -> "
      "(Tensor, Tensor, Tensor)");
  return found;
}

IValue optional(const at::Tensor& tensor) {
  return tensor.defined() ? IValue(tensor) : IValue();
}

// Not tensors of the function itself: one may be undefined.
struct Scores {
  at::Tensor mask;
  double scale;
};

class Attention : public torch::autograd::Function<Attention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, const Scores& scores) {
    const at::Tensor& mask = scores.mask;
    const bool is_causal = !mask.defined();
    const std::vector<IValue> results =
        forward_operator().call({query, key, value, optional(mask), kNoDropout, scores.scale, is_causal,
                                 /*requires_backward=*/true, kSoftmaxMode, IValue(), std::string("left")});
    const at::Tensor output = results[0].toTensor();
    context->save_for_backward({query, key, value, mask, results[1].toTensor(), results[2].toTensor(), output});
    context->saved_data["scale"] = scores.scale;
    return output;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& mask = saved[3];
    const std::vector<IValue> results = backward_operator().call(
        {gradients[0], saved[0], saved[1], saved[2], optional(mask), saved[4], saved[5], IValue(),
         /*is_causal=*/!mask.defined(), kNoDropout, context->saved_data["scale"].toDouble(), kSoftmaxMode, saved[6]});
    return {results[0].toTensor(), results[1].toTensor(), results[2].toTensor(), at::Tensor()};
  }
};

}  // namespace

bool has_attention(const at::Tensor& x) {
  return may_use_bridge(x) && forward_operator().is_usable() && backward_operator().is_usable();
}

at::Tensor attention(const AttentionInputs& inputs) {
  const at::Tensor mask = inputs.mask.defined() ? inputs.mask.unsqueeze(1) : inputs.mask;  // [B or 1, 1, 1, L, L]
  return Attention::apply(inputs.query, inputs.key, inputs.value, Scores{mask, inputs.scale});
}

}  // namespace fettle::ops::hpu
