// SPDX-License-Identifier: Apache-2.0
#include "ops/hpu/kernels.h"

#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "ops/hpu/operator.h"

namespace fettle::ops::hpu {
namespace {

using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Pair {
  Operator forward;
  Operator backward;
  [[nodiscard]] bool is_usable() const { return forward.is_usable() && backward.is_usable(); }
};

const Pair& rms_norm_operators() {
  static const Pair found{
      Operator("hpu::rms_norm(Tensor data_in, Tensor gamma, float epsilon) -> (Tensor, Tensor)"),
      Operator("hpu::rms_norm_backward(Tensor grad_in, Tensor data_in, Tensor gamma, Tensor inverse_rms, "
               "bool use_stages, int bwd_mode) -> (Tensor, Tensor)")};
  return found;
}
const Pair& rotary_operators() {
  static const Pair found{
      Operator("hpu::rotary_pos_embedding(Tensor input, Tensor sin, Tensor cos, Tensor? position_ids, int offset, "
               "int mode) -> Tensor"),
      Operator("hpu::rotary_pos_embedding_backward(Tensor grad_in, Tensor sin, Tensor cos, Tensor? position_ids, "
               "int offset, int mode) -> Tensor")};
  return found;
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight, double eps) {
    const std::vector<IValue> results = rms_norm_operators().forward.call({x, weight, eps});
    context->save_for_backward({x, weight, results[1].toTensor()});
    return results[0].toTensor();
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    constexpr bool kStages = true;  // as the vendor's Python: dx and the weight's gradient in one kernel
    constexpr int64_t kMode = 0;
    const variable_list saved = context->get_saved_variables();
    const std::vector<IValue> results =
        rms_norm_operators().backward.call({gradients[0].contiguous(), saved[0], saved[1], saved[2], kStages, kMode});
    const bool weight_is_trained = context->needs_input_grad(1);
    return {results[0].toTensor(), weight_is_trained ? results[1].toTensor() : at::Tensor(), at::Tensor()};
  }
};

// [T, N, D] as the kernel's [B, S, heads, D]; cos and sin of a head's two halves are equal.
class Rotary : public torch::autograd::Function<Rotary> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    const auto whole = [](const at::Tensor& half) { return at::cat({half, half}, 1).view({1, half.size(0), 1, -1}); };
    context->save_for_backward({whole(cos), whole(sin)});
    const variable_list tables = {whole(cos), whole(sin)};
    return turn(rotary_operators().forward, x, tables);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list tables = context->get_saved_variables();
    return {turn(rotary_operators().backward, gradients[0].contiguous(), tables), at::Tensor(), at::Tensor()};
  }

 private:
  static at::Tensor turn(const Operator& by, const at::Tensor& x, const variable_list& tables) {
    constexpr int64_t kOffset = 0;
    constexpr int64_t kHalves = 0;  // the second half of a head with the first, as Llama
    return by.call({x.unsqueeze(0), tables[1], tables[0], IValue(), kOffset, kHalves})[0].toTensor().squeeze(0);
  }
};

}  // namespace

bool has_rms_norm(const at::Tensor& x) {
  return may_use_bridge(x) && rms_norm_operators().is_usable();
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return RmsNorm::apply(x, weight, eps);
}

bool has_rotary(const at::Tensor& x) {
  return may_use_bridge(x) && rotary_operators().is_usable();
}

at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return Rotary::apply(x, cos, sin);
}

}  // namespace fettle::ops::hpu
