// SPDX-License-Identifier: Apache-2.0
#include "model/parameter.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>
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

// Stands for a value that is not here, and takes no memory. One that is used all the same shows at once.
at::Tensor absent(at::IntArrayRef shape, at::TensorOptions options) {
  return at::full({}, std::numeric_limits<double>::quiet_NaN(), options).expand(shape);
}

}  // namespace

Parameter::Parameter(std::string name, at::Tensor value) : name_(std::move(name)), value_(std::move(value)) {}

Parameter Parameter::elsewhere(std::string name, at::IntArrayRef shape, at::ScalarType type) {
  Parameter parameter(std::move(name), absent(shape, type));
  parameter.is_elsewhere_ = true;
  return parameter;
}

Parameter Parameter::grouped(std::string name, ops::GroupedWeight weight, at::ScalarType type) {
  Parameter parameter(std::move(name), absent({weight.rows, weight.columns}, weight.scales.options().dtype(type)));
  parameter.quantized_ = std::move(weight);
  return parameter;
}

void Parameter::arrive(at::Tensor value) {
  value_ = std::move(value);
}

void Parameter::leave() {
  value_ = absent(value_.sizes(), value_.options());
}

at::Tensor Parameter::value() const {
  if (!is_trained() || !at::GradMode::is_enabled()) {
    return value_;
  }
  const bool is_master = value_.scalar_type() == at::kFloat && !is_elsewhere_;
  return is_master ? master_ : CastOnce::apply(master_, Copy{value_});
}

void Parameter::move_to(at::Device device) {
  TORCH_CHECK(!is_trained(), name_, ": a trained weight stays where it is");
  value_ =
      is_elsewhere_ || is_quantized() ? absent(value_.sizes(), value_.options().device(device)) : value_.to(device);
  if (quantized_) quantized_ = ops::moved(*quantized_, device);
}

ops::Weight Parameter::weight() const {
  return is_quantized() ? *quantized_ : value();
}

void Parameter::quantize(ops::WeightFormat format) {
  TORCH_CHECK(!is_trained() && !is_elsewhere_ && !is_quantized(), name_,
              ": only a frozen weight that is here, in full, can be quantized");
  quantized_ = ops::quantize(value_, format);
  value_ = absent(value_.sizes(), value_.options());
}

at::Tensor Parameter::rows(const at::Tensor& indices) const {
  return is_trained() ? Rows::apply(master_, indices, Copy{value_}) : at::embedding(value_, indices);
}

void Parameter::train(const at::Tensor& start) {
  TORCH_CHECK(start.sizes() == value_.sizes(), name_, ": master ", start.sizes(), " of a weight ", value_.sizes());
  const at::ScalarType type = value_.scalar_type();
  quantized_.reset();
  master_ = start.detach().to(value_.device(), at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous();
  master_.requires_grad_(true);
  value_ = type == at::kFloat ? master_.detach() : master_.detach().to(type);  // float32: the same memory
}

void Parameter::train_elsewhere() {
  TORCH_CHECK(is_elsewhere_, name_, ": its value is here");
  master_ = at::zeros({}, value_.options().dtype(at::kFloat)).expand(value_.sizes()).requires_grad_(true);
}

bool Parameter::copies_master() const {
  return is_trained() && !is_elsewhere_ && value_.scalar_type() != at::kFloat;
}

}  // namespace fettle::model
