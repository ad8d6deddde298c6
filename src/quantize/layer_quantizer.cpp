// SPDX-License-Identifier: Apache-2.0
#include "quantize/layer_quantizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/where.h>
#include <fmt/format.h>

#include <array>
#include <functional>
#include <map>
#include <utility>

#include "base/error.h"
#include "model/layer_reader.h"
#include "model/weights.h"
#include "quantize/awq.h"
#include "quantize/gptq.h"
#include "quantize/input_statistics.h"
#include "quantize/range_search.h"
#include "quantize/stored_layer.h"
#include "quantize/teq.h"

namespace fettle::quantize {
namespace {

using model::Layer;
using model::Linear;

enum Stage : size_t { kAttention, kOutput, kFeedForward, kDown };
constexpr std::array kStages = {kAttention, kOutput, kFeedForward, kDown};

model::Stream stream_of(const model::Batch& batch, const LayerPlace& place) {
  return {
      .spec = place.spec,
      .cu_seqlens = batch.cu_seqlens,
      .rope = model::rope_table(place.spec.rope, batch.positions, batch.cu_seqlens, {place.compute_type, place.device}),
      .lora = {},
      .cache = nullptr};
}

/// The records through the whole layer.
void move_on(const Layer& layer, const LayerPlace& place, Calibration& calibration) {
  for (size_t i = 0; i < calibration.batches.size(); ++i) {
    calibration.hidden[i] =
        transform(layer, place.index, calibration.hidden[i], stream_of(calibration.batches[i], place));
  }
}

/// The layer, its matrices in float32 as they change, and what became of them.
class Work {
 public:
  Work(const LayerPlace& place, const Method& method, Calibration& calibration)
      : place_(place), method_(method), scheme_(method.scheme()), calibration_(calibration), layer_(read(place)) {
    for (const Stage stage : kStages) {
      for (Linear* linear : linears(stage)) weights_[stage].push_back(full_weight(*linear));
    }
  }

  StoredLayer round_to_nearest() {
    for (const Stage stage : kStages) {
      for (size_t i = 0; i < weights_[stage].size(); ++i) round(stage, i, rtn(weights_[stage][i], scheme_));
    }
    move_on(layer_, place_, calibration_);
    return finish();
  }

  StoredLayer round_with_hessian() {
    const config::QuantizationConfig& config = method_.config;
    const GptqOptions options{.act_order = config.act_order,
                              .static_groups = config.static_groups,
                              .clip = config.gptq_clip,
                              .damp_percent = config.damp_percent,
                              .block_size = config.gptq_block_size};
    pass([&](Stage stage, const InputStatistics& inputs) {
      for (size_t i = 0; i < weights_[stage].size(); ++i) {
        round(stage, i, gptq(weights_[stage][i], inputs.hessian, scheme_, options));
      }
    });
    return finish();
  }

  /// AWQ and TEQ: factors first, on the layer as it is, which they do not change; then all is rounded.
  StoredLayer round_with_factors() {
    const std::vector<at::Tensor> before = calibration_.hidden;
    std::array<at::Tensor, kStages.size()> hessians;
    pass([&](Stage stage, const InputStatistics& inputs) {
      const at::Tensor factors = fold(stage, find_factors(stage, inputs));
      if (clips()) hessians[stage] = inputs.hessian / at::outer(factors, factors);
    });
    calibration_.hidden = before;
    for (const Stage stage : kStages) {
      for (size_t i = 0; i < weights_[stage].size(); ++i) {
        const at::Tensor& weight = weights_[stage][i];
        round(stage, i,
              clips() ? round_to(weight, search_ranges(weight, hessians[stage], scheme_), scheme_)
                      : rtn(weight, scheme_));
      }
    }
    move_on(layer_, place_, calibration_);
    return finish();
  }

 private:
  static Layer read(const LayerPlace& place) {
    return model::LayerReader(place.source, place.compute_type, place.device).layer(place.spec, place.index);
  }

  [[nodiscard]] bool clips() const { return method_.config.woq_algo == "AWQ" && method_.config.awq_clip; }

  std::vector<Linear*> linears(Stage stage) {
    switch (stage) {
      case kAttention:
        return {&layer_.query, &layer_.key, &layer_.value};
      case kOutput:
        return {&layer_.output};
      case kFeedForward:
        return {&layer_.gate, &layer_.up};
      case kDown:
        break;
    }
    return {&layer_.down};
  }

  [[nodiscard]] at::Tensor full_weight(const Linear& linear) const {
    const std::string name = linear.name + ".weight";
    const at::Tensor weight =
        model::read_tensor(place_.source, *place_.source->find(name), at::kFloat).to(place_.device);
    if (!weight.isfinite().all().item<bool>()) {
      throw Error(ExitCode::kDiverged, name + " holds numbers that are not finite", "quantize a model that is whole");
    }
    return weight;
  }

  /// The records through the layer, stage by stage; `look` may change the stage's layers once it has seen what all
  /// records give them.
  void pass(const std::function<void(Stage, const InputStatistics&)>& look) {
    std::vector<at::Tensor>& hidden = calibration_.hidden;
    std::vector<at::Tensor> mixed(hidden.size());
    stage(kAttention, look, [&](size_t i, const model::Stream& s) { return attention_input(layer_, hidden[i], s); });
    stage(kOutput, look, [&](size_t i, const model::Stream& s) {
      return mixed[i] = attend(layer_, place_.index, attention_input(layer_, hidden[i], s), s);
    });
    stage(kFeedForward, look, [&](size_t i, const model::Stream& s) {
      hidden[i] = hidden[i] + model::project(mixed[i], {&layer_.output}, {})[0];
      mixed[i].reset();
      return feed_forward_input(layer_, hidden[i], s);
    });
    const auto gated = [&](size_t i, const model::Stream& s) {
      return gate(layer_, feed_forward_input(layer_, hidden[i], s), s);
    };
    stage(kDown, look, gated);
    for (size_t i = 0; i < hidden.size(); ++i) {  // computed again: four times the stream is too much to keep
      hidden[i] =
          hidden[i] + model::project(gated(i, stream_of(calibration_.batches[i], place_)), {&layer_.down}, {})[0];
    }
  }

  void stage(Stage stage, const std::function<void(Stage, const InputStatistics&)>& look,
             const std::function<at::Tensor(size_t, const model::Stream&)>& input) {
    InputSums inputs(weights_[stage].front().size(1), place_.device);
    for (size_t i = 0; i < calibration_.batches.size(); ++i) {
      const at::Tensor x = input(i, stream_of(calibration_.batches[i], place_));
      const bool is_added = stage == kOutput || stage == kDown;
      const Linear& linear = *linears(stage).front();
      inputs.add(is_added ? (x * share_of_stream(linear, x, calibration_.hidden[i])).to(x.scalar_type()) : x);
    }
    look(stage, inputs.mean());
  }

  /// 1 / the size of the stream after each token's output is added to it, [T, 1]: the next norm divides by that, and so
  /// the output's error too. Else a few tokens whose activations are enormous (arXiv 2402.17762) would decide alone. It
  /// is rounded to a power of two, which bfloat16 multiplies by exactly.
  [[nodiscard]] at::Tensor share_of_stream(const Linear& linear, const at::Tensor& x, const at::Tensor& stream) const {
    const at::Tensor after = (stream + model::project(x, {&linear}, {})[0]).to(at::kFloat);
    return after.square().mean(-1, /*keepdim=*/true).add_(place_.spec.norm_eps).rsqrt_().log2_().round_().exp2_();
  }

  void round(Stage stage, size_t i, const RoundedWeight& rounded) {
    Linear& linear = *linears(stage)[i];
    require_scales(linear.name, weights_[stage][i], rounded.ranges.scales);
    linear.weight = {linear.name + ".weight", rounded.values().to(place_.compute_type)};
    weights_[stage][i].reset();
    for (auto& tensor : hub::encode(method_.format, linear.name, to_matrix(rounded, scheme_),
                                    method_.format.scale_type(method_.model_type))) {
      stored_.push_back(std::move(tensor));
    }
  }

  /// Refuses a matrix whose size the layout's scales cannot express.
  void require_scales(const std::string& name, const at::Tensor& weight, const at::Tensor& scales) const {
    const bool overflows = !scales.isfinite().all().item<bool>();
    const bool vanishes = scales.max().item<float>() <= smallest_scale(scheme_.scale_type) && weight.any().item<bool>();
    if (!overflows && !vanishes) return;
    throw Error(ExitCode::kConfig,
                fmt::format("{}: its weights are too {} for scales in {}", name, overflows ? "large" : "small",
                            hub::dtype_name(method_.format.scale_type(method_.model_type))),
                scheme_.scale_type == at::kHalf ? "set woq_format: compressed-tensors"
                                                : "bring the weights into float32's usual range");
  }

  at::Tensor find_factors(Stage stage, const InputStatistics& inputs) {
    const at::Tensor weight = at::cat(weights_[stage]);
    const config::QuantizationConfig& config = method_.config;
    const Tie tie = [this, stage](const at::Tensor& logarithms) {
      return stage == kOutput ? tie_heads(logarithms) : logarithms;
    };
    if (config.woq_algo == "AWQ") return search_factors(weight, inputs, scheme_, config.awq_grid_size, tie);
    return train_factors(weight, inputs.hessian, scheme_,
                         {.steps = config.teq_steps, .learning_rate = config.teq_learning_rate}, tie);
  }

  /// A value head serves several query heads: its elements have one factor in all of them.
  [[nodiscard]] at::Tensor tie_heads(const at::Tensor& logarithms) const {
    const model::DecoderSpec& spec = place_.spec;
    const at::Tensor heads = logarithms.view({spec.kv_heads, spec.heads / spec.kv_heads, spec.head_dim});
    return heads.mean(1, /*keepdim=*/true).expand_as(heads).flatten();
  }

  /// Multiplies the stage's weights by the factors of their inputs and divides what makes the inputs by them. Returns
  /// the factors as they are in the end.
  at::Tensor fold(Stage stage, const at::Tensor& factors) {
    const at::Tensor applied = stage == kAttention     ? divide_norm(layer_.input_norm, factors)
                               : stage == kFeedForward ? divide_norm(layer_.post_attention_norm, factors)
                               : stage == kOutput      ? divide_heads(factors)
                                                       : divide_rows(kFeedForward, 1, factors);
    const std::vector<Linear*> to = linears(stage);
    for (size_t i = 0; i < to.size(); ++i) set_weight(stage, i, weights_[stage][i] * applied);
    return applied;
  }

  void set_weight(Stage stage, size_t i, at::Tensor weight) {
    Linear& linear = *linears(stage)[i];
    linear.weight = {linear.name + ".weight", weight.to(place_.compute_type)};
    weights_[stage][i] = std::move(weight);
  }

  /// A norm is stored in the model's type: its factors are what that makes of them.
  at::Tensor divide_norm(model::Parameter& norm, const at::Tensor& factors) {
    const at::Tensor before = norm.value().to(at::kFloat);
    const at::Tensor after = (before / factors).to(model::torch_type(method_.model_type)).to(at::kFloat);
    norm = {norm.name(), after.to(place_.compute_type)};
    changed_[norm.name()] = after;
    return at::where(after == 0, at::ones_like(factors), before / after);
  }

  at::Tensor divide_rows(Stage stage, size_t i, const at::Tensor& factors) {
    set_weight(stage, i, weights_[stage][i] / factors.unsqueeze(1));
    Linear& linear = *linears(stage)[i];
    if (linear.bias) {
      const at::Tensor bias = linear.bias->value().to(at::kFloat) / factors;
      linear.bias = {linear.bias->name(), bias.to(place_.compute_type)};
      changed_[linear.bias->name()] = bias;
    }
    return factors;
  }

  /// `factors` as tie_heads makes them: those of the query heads are their value head's.
  at::Tensor divide_heads(const at::Tensor& factors) {
    const model::DecoderSpec& spec = place_.spec;
    const at::Tensor heads = factors.view({spec.kv_heads, spec.heads / spec.kv_heads, spec.head_dim});
    divide_rows(kAttention, 2, heads.select(1, 0).flatten());
    return factors;
  }

  StoredLayer finish() {
    const std::string prefix = fmt::format("model.layers.{}.", place_.index);
    for (const model::TensorShape& tensor : model::expected_tensors(place_.spec)) {
      if (!tensor.name.starts_with(prefix) || tensor.shape.size() != 1) continue;
      const auto found = changed_.find(tensor.name);
      const at::Tensor value = found != changed_.end()
                                   ? found->second
                                   : model::read_tensor(place_.source, *place_.source->find(tensor.name), at::kFloat);
      stored_.push_back(store(tensor.name, value, method_.model_type));
    }
    return std::move(stored_);
  }

  const LayerPlace& place_;
  const Method& method_;
  Scheme scheme_;
  Calibration& calibration_;
  Layer layer_;
  std::array<std::vector<at::Tensor>, kStages.size()> weights_;  // float32 [O, C], until they are rounded
  std::map<std::string, at::Tensor> changed_;                    // norms and biases, float32
  StoredLayer stored_;
};

}  // namespace

Scheme Method::scheme() const {
  return {.bits = format.bits,
          .group = format.group,
          .symmetric = format.symmetric,
          .lowest_zero = format.layout == hub::QuantizedLayout::kGptq ? 1 : 0,
          .scale_type = model::torch_type(format.scale_type(model_type))};
}

StoredLayer quantize_layer(const LayerPlace& place, const Method& method, Calibration& calibration) {
  const at::NoGradGuard no_gradients;
  Work work(place, method, calibration);
  if (method.config.woq_algo == "RTN") return work.round_to_nearest();
  return method.config.woq_algo == "GPTQ" ? work.round_with_hessian() : work.round_with_factors();
}

void pass_through(const LayerPlace& place, const Method& method, Calibration& calibration) {
  if (calibration.batches.empty()) return;
  const at::NoGradGuard no_gradients;
  model::DecoderSpec spec = place.spec;
  spec.quantization = method.format;
  move_on(model::LayerReader(place.source, place.compute_type, place.device).layer(spec, place.index), place,
          calibration);
}

}  // namespace fettle::quantize
