// SPDX-License-Identifier: Apache-2.0
/// AdamW and gradient clipping, as torch computes them, on float32 masters.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/config.h"
#include "dist/group.h"
#include "model/decoder.h"

namespace fettle::train {

/// Whether weight decay applies to a parameter of this name: not to biases and norm weights (the rule of transformers'
/// Trainer.get_decay_parameter_names).
bool decays(std::string_view name);

/// The L2 norm of all gradients together: a scalar on their device, not finite if any gradient is not.
at::Tensor gradient_norm(const std::vector<model::NamedTensor>& parameters);

/// Scales all gradients, whose norm is `norm`, so that it is at most `max_norm` and returns the norm before
/// (torch.nn.utils.clip_grad_norm_). `max_norm` 0: only measures. With a group, whose ranks all call it, the norm is
/// that of the gradients of all ranks together.
double clip_gradients(const std::vector<model::NamedTensor>& parameters, const at::Tensor& norm, double max_norm,
                      dist::Group* group = nullptr);

/// The same without a read of the norm: on a device that compiles graphs.
void clip_gradients_by(const std::vector<model::NamedTensor>& parameters, const at::Tensor& norm, double max_norm);

/// Frees the gradients, so that the next backward writes new ones instead of adding.
void clear_gradients(const std::vector<model::NamedTensor>& parameters);

/// torch.optim.AdamW (decoupled decay, bias correction) through ATen's fused kernel; on a device that compiles graphs,
/// in plain operations whose graph does not change. (Not by hpu::optimizer_adamw: it adds epsilon to the root of a mean
/// that is not corrected for its bias, which in the first thousand steps is another optimizer where gradients are
/// small.) Parameters are changed in place; one without a gradient is left alone, as in torch.
class AdamW {
 public:
  /// `parameters`: float32 leaves, kept by reference for the life of the optimizer.
  AdamW(std::vector<model::NamedTensor> parameters, const config::TrainingConfig& options);

  /// One update from the parameters' gradients.
  void step(double learning_rate);
  /// What `state` calls the tensors of a parameter after its name, and their shapes.
  static std::vector<std::pair<std::string, std::vector<int64_t>>> state_of(const at::Tensor& parameter);

  /// <name>.exp_avg, <name>.exp_avg_sq (shapes of the parameter) and <name>.step ([]), all float32 and live: not
  /// copies.
  [[nodiscard]] std::vector<model::NamedTensor> state() const;

 private:
  /// One decay group: parallel lists, as the fused kernel takes them.
  struct Group {
    double weight_decay = 0;
    std::vector<model::NamedTensor> parameters;
    std::vector<at::Tensor> means;          ///< exp_avg
    std::vector<at::Tensor> squared_means;  ///< exp_avg_sq
    std::vector<at::Tensor> steps;          ///< float32 scalars
  };
  void step_group(Group& group, double learning_rate) const;
  void update_by_graph(const Group& used, std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& gradients,
                       double learning_rate) const;

  double beta1_;
  double beta2_;
  double epsilon_;
  std::vector<Group> groups_;  ///< with decay, without
};

}  // namespace fettle::train
