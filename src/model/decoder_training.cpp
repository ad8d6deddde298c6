// SPDX-License-Identifier: Apache-2.0
/// What of a decoder is trained: LoRA, whole modules, or everything.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>
#include <variant>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "model/decoder_impl.h"
#include "model/lora_targets.h"
#include "model/weights.h"

namespace fettle::model {
namespace {

TensorShape shape_of_a(const Linear& layer, int64_t rank) {
  return {layer.name + ".lora_A.weight", {rank, layer.weight.stored().size(1)}};
}
TensorShape shape_of_b(const Linear& layer, int64_t rank) {
  return {layer.name + ".lora_B.weight", {layer.weight.stored().size(0), rank}};
}

// Puts LoRA on the selected layers. `start` gives a new matrix its numbers.
template <typename Start>
LoraTargets install(DecoderImpl& model, const hub::AdapterConfig& config, const Start& start) {
  TORCH_CHECK(!model.adapter.has_value(), "Decoder: one adapter at a time");
  const LoraTargets targets = select_targets(module_names(model.spec), config);
  const auto matrix = [&](const TensorShape& shape) {
    Parameter parameter(shape.name, at::empty(shape.shape, at::dtype(model.dtype).device(model.device)));
    parameter.train(start(shape));
    return parameter;
  };
  for (Linear* layer : model.linears()) {
    if (std::ranges::find(targets.adapted, layer->name) != targets.adapted.end()) {
      layer->lora = Lora{matrix(shape_of_a(*layer, config.r)), matrix(shape_of_b(*layer, config.r))};
    }
  }
  const auto is_saved = [&](const std::string& module) {
    return std::ranges::find(targets.saved, module) != targets.saved.end();
  };
  // As PEFT: what is saved whole is a copy, and a head that was tied to it, or it to the head, is so no longer.
  if (model.is_tied() && (is_saved("lm_head") || is_saved("model.embed_tokens"))) {
    model.head = std::make_shared<Parameter>("lm_head.weight", model.embedding->stored());
  }
  for (Parameter* parameter : model.parameters()) {
    if (is_saved(module_of(parameter->name()))) {
      if (model.gathered && is_in_layer(parameter->name())) {
        throw Error(ExitCode::kConfig,
                    fmt::format("lora_modules_to_save trains {} whole, which zero_stage 3 cannot share out",
                                module_of(parameter->name())),
                    "use zero_stage 2");
      }
      parameter->train(start({parameter->name(), parameter->stored().sizes().vec()}));
    }
  }
  model.adapter = config;
  model.lora_scaling = lora_scaling(config);
  const bool all_linear = module_selection({config.target_modules.pattern}).pattern == kAllLinear;
  if (all_linear) {
    model.adapter->target_modules = {.names = targets.leaf_names(), .pattern = {}};
  }
  return targets;
}

void log_counts(DecoderImpl& model, const LoraTargets& targets) {
  int64_t trained = 0;
  for (const Parameter* parameter : model.parameters()) {
    trained += parameter->is_trained() ? parameter->master().numel() : 0;
  }
  std::vector<std::string> counts;
  for (const auto& [name, count] : targets.counts) {
    counts.push_back(fmt::format("{} ×{}", name, count));
  }
  const int64_t all = parameter_count(model.spec) + trained;
  log::info("LoRA on {}: {} of {} weights are trained ({:.2f} %)", fmt::join(counts, ", "), trained, all,
            100.0 * static_cast<double>(trained) / static_cast<double>(all));
}

}  // namespace

std::vector<Linear*> DecoderImpl::linears() {
  std::vector<Linear*> all;
  for (Layer& layer : layers) {
    all.insert(all.end(), {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down});
  }
  return all;
}

std::vector<Parameter*> DecoderImpl::weights_of(Layer& layer) {
  std::vector<Parameter*> all{&layer.input_norm, &layer.post_attention_norm};
  for (Linear* linear : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down}) {
    all.push_back(&linear->weight);
    if (linear->bias.has_value()) all.push_back(&*linear->bias);
  }
  if (layer.query_norm.has_value()) all.push_back(&*layer.query_norm);
  if (layer.key_norm.has_value()) all.push_back(&*layer.key_norm);
  return all;
}

std::vector<Parameter*> DecoderImpl::parameters() {
  std::vector<Parameter*> all{embedding.get()};
  const auto add = [&](std::optional<Parameter>& parameter) {
    if (parameter.has_value()) {
      all.push_back(&*parameter);
    }
  };
  const auto add_linear = [&](Linear& layer) {
    all.push_back(&layer.weight);
    add(layer.bias);
    if (layer.lora.has_value()) {
      all.insert(all.end(), {&layer.lora->a, &layer.lora->b});
    }
  };
  for (Layer& layer : layers) {
    all.push_back(&layer.input_norm);
    add_linear(layer.query);
    add_linear(layer.key);
    add_linear(layer.value);
    add(layer.query_norm);
    add(layer.key_norm);
    add_linear(layer.output);
    all.push_back(&layer.post_attention_norm);
    add_linear(layer.gate);
    add_linear(layer.up);
    add_linear(layer.down);
  }
  add(norm);
  if (!is_tied()) {
    all.push_back(head.get());
  }
  return all;
}

void Decoder::add_lora(const config::LoraConfig& config, uint64_t seed) {
  const hub::AdapterConfig adapter = model::adapter_config(config);
  require_exclusions_match(module_names(impl_->spec), adapter.exclude_modules);
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto start = [&](const TensorShape& shape) {
    if (shape.name.ends_with("lora_A.weight")) {
      const double bound = 1.0 / std::sqrt(static_cast<double>(shape.shape[1]));  // kaiming_uniform(a=√5)
      return at::empty(shape.shape, at::kFloat).uniform_(-bound, bound, generator);
    }
    if (shape.name.ends_with("lora_B.weight")) {
      return at::zeros(shape.shape, at::kFloat);
    }
    const hub::TensorView* view = impl_->source->find(shape.name);  // null: a head that was tied
    return read_tensor(impl_->source, view != nullptr ? *view : *impl_->source->find(impl_->embedding->name()),
                       at::kFloat);
  };
  log_counts(*impl_, install(*impl_, adapter, start));
}

void Decoder::load_adapter(const hub::AdapterConfig& config, const hub::TensorSource& weights) {
  const auto source = std::make_shared<const hub::TensorSource>(weights);
  // Names and shapes are checked as a whole before the first is read.
  check_names(*source, expected_adapter_tensors(impl_->spec, config), /*tied_embeddings=*/false, "the adapter");
  install(*impl_, config, [&](const TensorShape& shape) {
    return read_tensor(source, *source->find(kPeftPrefix + shape.name), at::kFloat);
  });
}

void Decoder::make_trainable_full() {
  TORCH_CHECK(!impl_->adapter.has_value(), "Decoder: an adapter is trained instead of the whole model");
  for (Parameter* parameter : impl_->parameters()) {
    if (parameter->is_elsewhere()) {
      parameter->train_elsewhere();
    } else {
      const hub::TensorView& view = *impl_->source->find(parameter->name());
      parameter->train(read_tensor(impl_->source, view, at::kFloat));
      release_pages(view.bytes);
    }
  }
}

std::vector<NamedTensor> Decoder::trainable() const {
  std::vector<NamedTensor> trained;
  for (const Parameter* parameter : impl_->parameters()) {
    if (parameter->is_trained()) {
      trained.push_back({(impl_->adapter.has_value() ? kPeftPrefix : "") + parameter->name(), parameter->master()});
    }
  }
  return trained;
}

void Decoder::refresh_compute_weights() {
  std::vector<at::Tensor> values;
  std::vector<at::Tensor> masters;
  for (const Parameter* parameter : impl_->parameters()) {
    if (!parameter->copies_master()) continue;
    values.push_back(parameter->stored());
    masters.push_back(parameter->master().detach());
  }
  if (!values.empty()) at::_foreach_copy_(values, masters);
}

std::vector<NamedTensor> Decoder::adapter_tensors() const {
  return impl_->adapter.has_value() ? trainable() : std::vector<NamedTensor>{};
}

hub::AdapterConfig Decoder::adapter_config() const {
  TORCH_CHECK(impl_->adapter.has_value(), "Decoder: there is no adapter");
  return *impl_->adapter;
}

std::vector<NamedTensor> Decoder::weights() const {
  std::vector<NamedTensor> all;
  for (const Parameter* parameter : impl_->parameters()) {
    const bool is_lora = parameter->name().ends_with(".lora_A.weight") || parameter->name().ends_with(".lora_B.weight");
    if (!is_lora) {
      TORCH_CHECK(!parameter->is_quantized(), "Decoder: the weights are quantized");
      all.push_back({parameter->name(), parameter->is_trained() ? parameter->master() : parameter->stored()});
    }
  }
  return all;
}

int64_t Decoder::bytes() const {
  const auto size = []<typename T>(const T& weight) {
    if constexpr (std::is_same_v<T, at::Tensor>) {
      return static_cast<int64_t>(weight.nbytes());
    } else {
      return weight.bytes();
    }
  };
  int64_t sum = 0;
  for (const Parameter* parameter : impl_->parameters()) {
    sum += parameter->is_quantized() ? std::visit(size, parameter->weight()) : size(parameter->stored());
  }
  return sum;
}

}  // namespace fettle::model
