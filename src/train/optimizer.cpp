// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer.h"

#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "device/device.h"
#include "ops/to_device.h"

namespace fettle::train {
namespace {

std::vector<at::Tensor> gradients_of(const std::vector<model::NamedTensor>& parameters) {
  std::vector<at::Tensor> gradients;
  for (const model::NamedTensor& parameter : parameters) {
    if (parameter.tensor.grad().defined()) gradients.push_back(parameter.tensor.grad());
  }
  return gradients;
}

}  // namespace

bool decays(std::string_view name) {
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const char* pattern : {"bias", "layernorm", "rmsnorm"}) {
    if (lower.find(pattern) != std::string::npos) return false;
  }
  for (size_t begin = 0; begin <= lower.size();) {
    const size_t end = std::min(lower.find('.', begin), lower.size());
    const std::string_view module = std::string_view(lower).substr(begin, end - begin);
    if (module == "norm" || module.ends_with("_norm")) return false;
    begin = end + 1;
  }
  return true;
}

at::Tensor gradient_norm(const std::vector<model::NamedTensor>& parameters) {
  RECORD_FUNCTION("fettle::clip_gradients", c10::ArrayRef<const c10::IValue>());
  const c10::NoGradGuard no_gradients;
  const std::vector<at::Tensor> gradients = gradients_of(parameters);
  if (gradients.empty()) return at::zeros({});
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, 2)), 2);
}

double clip_gradients(const std::vector<model::NamedTensor>& parameters, const at::Tensor& norm, double max_norm,
                      dist::Group* group) {
  RECORD_FUNCTION("fettle::clip_gradients", c10::ArrayRef<const c10::IValue>());
  const c10::NoGradGuard no_gradients;
  double all = norm.item<double>();
  if (group != nullptr) {
    const at::Tensor square = at::full({1}, all * all, at::kDouble);
    group->all_reduce(square).wait();
    all = std::sqrt(square.item<double>());
  }
  const double coefficient = max_norm / (all + 1e-6);
  if (max_norm > 0 && coefficient < 1) {
    const std::vector<at::Tensor> gradients = gradients_of(parameters);
    if (!gradients.empty()) at::_foreach_mul_(gradients, coefficient);
  }
  return all;
}

void clip_gradients_by(const std::vector<model::NamedTensor>& parameters, const at::Tensor& norm, double max_norm) {
  RECORD_FUNCTION("fettle::clip_gradients", c10::ArrayRef<const c10::IValue>());
  if (max_norm <= 0) return;
  const c10::NoGradGuard no_gradients;
  const at::Tensor coefficient = norm.add(1e-6).reciprocal_().mul_(max_norm).clamp_max_(1);
  for (at::Tensor& gradient : gradients_of(parameters)) gradient.mul_(coefficient);
}

void clear_gradients(const std::vector<model::NamedTensor>& parameters) {
  for (const model::NamedTensor& parameter : parameters) parameter.tensor.mutable_grad().reset();
}

AdamW::AdamW(std::vector<model::NamedTensor> parameters, const config::TrainingConfig& options)
    : beta1_(options.adam_beta1), beta2_(options.adam_beta2), epsilon_(options.adam_epsilon), groups_(2) {
  groups_[0].weight_decay = options.weight_decay;
  for (model::NamedTensor& parameter : parameters) {
    Group& group = groups_[decays(parameter.name) ? 0 : 1];
    group.means.push_back(at::zeros_like(parameter.tensor));
    group.squared_means.push_back(at::zeros_like(parameter.tensor));
    // What the host computes with stays there: a number that changes would be compiled into a graph.
    const bool stays = device::compiles_graphs(parameter.tensor.device());
    group.steps.push_back(
        at::zeros({}, stays ? at::TensorOptions(at::kFloat) : parameter.tensor.options().requires_grad(false)));
    group.parameters.push_back(std::move(parameter));
  }
}

void AdamW::step(double learning_rate) {
  for (Group& group : groups_) step_group(group, learning_rate);
}

void AdamW::step_group(Group& group, double learning_rate) const {
  const c10::NoGradGuard no_gradients;
  // The entries whose parameter has a gradient; tensors are handles, so the kernel changes the group's own.
  Group used;
  used.weight_decay = group.weight_decay;
  std::vector<at::Tensor> parameters;
  std::vector<at::Tensor> gradients;
  for (size_t i = 0; i < group.parameters.size(); ++i) {
    const at::Tensor& parameter = group.parameters[i].tensor;
    if (!parameter.grad().defined()) continue;
    parameters.push_back(parameter);
    gradients.push_back(parameter.grad());
    used.means.push_back(group.means[i]);
    used.squared_means.push_back(group.squared_means[i]);
    used.steps.push_back(group.steps[i]);
  }
  if (parameters.empty()) return;
  at::_foreach_add_(used.steps, 1);
  if (device::compiles_graphs(parameters.front().device())) {
    update_by_graph(used, parameters, gradients, learning_rate);
    return;
  }
  at::_fused_adamw_(parameters, gradients, used.means, used.squared_means, {}, used.steps, learning_rate, beta1_,
                    beta2_, group.weight_decay, epsilon_, /*amsgrad=*/false, /*maximize=*/false);
}

void AdamW::update_by_graph(const Group& used, std::vector<at::Tensor>& parameters,
                            const std::vector<at::Tensor>& gradients, double learning_rate) const {
  std::map<double, at::Tensor> factors;  // of parameters that have made as many steps: on the device, sent once
  for (size_t i = 0; i < parameters.size(); ++i) {
    const double step = used.steps[i].item<float>();
    at::Tensor& sent = factors[step];
    if (!sent.defined()) {
      const double step_size = learning_rate / (1 - std::pow(beta1_, step));
      const double root = std::sqrt(1 - std::pow(beta2_, step));
      const double kept = 1 - learning_rate * used.weight_decay;
      sent = ops::to_device(at::tensor({step_size, root, kept}, at::kFloat), parameters[i].device());
    }
    at::Tensor mean = used.means[i];
    at::Tensor squared_mean = used.squared_means[i];
    mean.mul_(beta1_).add_(gradients[i], 1 - beta1_);
    squared_mean.mul_(beta2_).addcmul_(gradients[i], gradients[i], 1 - beta2_);
    const at::Tensor denominator = squared_mean.sqrt().div_(sent.select(0, 1)).add_(epsilon_);
    if (used.weight_decay != 0) parameters[i].mul_(sent.select(0, 2));
    parameters[i].sub_(mean.div(denominator).mul_(sent.select(0, 0)));
  }
}

std::vector<std::pair<std::string, std::vector<int64_t>>> AdamW::state_of(const at::Tensor& parameter) {
  return {{".exp_avg", parameter.sizes().vec()}, {".exp_avg_sq", parameter.sizes().vec()}, {".step", {}}};
}

std::vector<model::NamedTensor> AdamW::state() const {
  std::vector<model::NamedTensor> tensors;
  for (const Group& group : groups_) {
    for (size_t i = 0; i < group.parameters.size(); ++i) {
      const at::Tensor values[] = {group.means[i], group.squared_means[i], group.steps[i]};
      const auto names = state_of(group.parameters[i].tensor);
      for (size_t k = 0; k < names.size(); ++k) {
        tensors.push_back({group.parameters[i].name + names[k].first, values[k]});
      }
    }
  }
  return tensors;
}

}  // namespace fettle::train
