// SPDX-License-Identifier: Apache-2.0
#include "model/checkpoint.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <mutex>
#include <utility>

namespace fettle::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What dropout on the device draws from.
at::Generator generator_of(at::Device device) {
  return device.is_cpu() ? at::detail::getDefaultCPUGenerator() : at::globalContext().defaultGenerator(device);
}
at::Tensor random_state(at::Device device) {
  at::Generator generator = generator_of(device);
  const std::scoped_lock lock(generator.mutex());
  return generator.get_state();
}
void set_random_state(at::Device device, const at::Tensor& state) {
  at::Generator generator = generator_of(device);
  const std::scoped_lock lock(generator.mutex());
  generator.set_state(state);
}

struct Recomputation : torch::CustomClassHolder {
  Block block;
  at::Tensor state;  // of the generator before the first run; undefined if the block draws nothing
};
using RecomputationPointer = c10::intrusive_ptr<Recomputation>;

class Checkpoint : public torch::autograd::Function<Checkpoint> {
 public:
  // `anchor` requires gradients, so that the backward runs even where x does not (the first layer of a LoRA model).
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& /*anchor*/,
                            const RecomputationPointer& recomputation) {
    context->save_for_backward({x});
    context->saved_data["recomputation"] = at::IValue::make_capsule(recomputation);
    return recomputation->block(x);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto capsule = context->saved_data["recomputation"].toCapsule();
    const auto* recomputation = static_cast<const Recomputation*>(capsule.get());
    const at::Tensor x = context->get_saved_variables()[0].detach().requires_grad_(context->needs_input_grad(0));
    const at::AutoGradMode enabled(true);
    at::Tensor y;
    if (recomputation->state.defined()) {
      const at::Tensor now = random_state(x.device());
      set_random_state(x.device(), recomputation->state);
      y = recomputation->block(x);
      set_random_state(x.device(), now);
    } else {
      y = recomputation->block(x);
    }
    if (y.requires_grad()) {
      torch::autograd::backward({y}, {gradients[0]});
    }
    return {x.grad(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor checkpoint(const Block& block, const at::Tensor& x, bool uses_random_numbers) {
  if (!at::GradMode::is_enabled()) {
    return block(x);
  }
  auto recomputation = c10::make_intrusive<Recomputation>();
  recomputation->block = block;
  if (uses_random_numbers) {
    recomputation->state = random_state(x.device());
  }
  return Checkpoint::apply(x, at::zeros({0}).requires_grad_(true), recomputation);
}

}  // namespace fettle::model
