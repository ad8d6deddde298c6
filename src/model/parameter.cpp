// SPDX-License-Identifier: Apache-2.0
#include "model/parameter.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace fettle::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Copy {
  const at::Tensor& tensor;
};

// The cast of a master, except that the cast was done once after the optimizer's step and not at every use.
class CastOnce : public torch::autograd::Function<CastOnce> {
 public:
  static at::Tensor forward(AutogradContext* /*context*/, const at::Tensor& /*master*/, Copy copy) {
    return copy.tensor.detach();
  }
  static variable_list backward(AutogradContext* /*context*/, variable_list gradients) {
    return {gradients[0].to(at::kFloat), at::Tensor()};
  }
};

class Rows : public torch::autograd::Function<Rows> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& master, const at::Tensor& indices, Copy copy) {
    context->save_for_backward({indices});
    context->saved_data["rows"] = master.size(0);
    return at::embedding(copy.tensor, indices);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {at::embedding_dense_backward(gradients[0].to(at::kFloat), context->get_saved_variables()[0],
                                         context->saved_data["rows"].toInt(), /*padding_idx=*/-1,
                                         /*scale_grad_by_freq=*/false),
            at::Tensor(), at::Tensor()};
  }
};

}  // namespace

Parameter::Parameter(std::string name, at::Tensor value) : name_(std::move(name)), value_(std::move(value)) {}

at::Tensor Parameter::value() const {
  if (!is_trained() || !at::GradMode::is_enabled()) {
    return value_;
  }
  return value_.scalar_type() == at::kFloat ? master_ : CastOnce::apply(master_, Copy{value_});
}

at::Tensor Parameter::rows(const at::Tensor& indices) const {
  return is_trained() ? Rows::apply(master_, indices, Copy{value_}) : at::embedding(value_, indices);
}

void Parameter::train(const at::Tensor& start) {
  TORCH_CHECK(start.sizes() == value_.sizes(), name_, ": master ", start.sizes(), " of a weight ", value_.sizes());
  const at::ScalarType type = value_.scalar_type();
  master_ = start.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous().requires_grad_(true);
  value_ = type == at::kFloat ? master_.detach() : master_.detach().to(type);  // float32: the same memory
}

void Parameter::refresh() {
  if (is_trained() && value_.scalar_type() != at::kFloat) {
    value_.copy_(master_.detach());
  }
}

}  // namespace fettle::model
