// SPDX-License-Identifier: Apache-2.0
#include "model/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "model/checkpoint.h"
#include "model/decoder_impl.h"
#include "model/rope.h"
#include "model/weights.h"
#include "ops/attention.h"
#include "ops/gated.h"
#include "ops/linear_cross_entropy.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "ops/row_attention.h"
#include "ops/to_device.h"

namespace fettle::model {
namespace {

// What all layers share of one pass. T tokens, C hidden size, H query heads, K key heads, D elements a head.
struct Stream {
  const DecoderSpec& spec;
  const std::vector<int32_t>& cu_seqlens;
  RopeTable rope;
  ops::LoraOptions lora;
  KvCache* cache;
  std::shared_ptr<ops::RowMasks> rows = {};  // null: documents have the shape that they have
};

std::shared_ptr<ops::RowMasks> row_masks(const Batch& batch, at::Device device) {
  const int64_t length = batch.row_length;
  if (length == 0) return nullptr;
  const int64_t rows = batch.tokens.size(0) / length;
  at::Tensor documents;
  if (!batch.one_document_a_row) {
    documents = at::empty({batch.tokens.size(0)}, at::kInt);
    auto* of_token = documents.mutable_data_ptr<int32_t>();
    for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
      std::fill(of_token + batch.cu_seqlens[i], of_token + batch.cu_seqlens[i + 1], static_cast<int32_t>(i));
    }
    documents = ops::to_device(documents, device);
  }
  return std::make_shared<ops::RowMasks>(length, std::move(documents), rows, device);
}

at::Tensor attend(const Layer& layer, int64_t index, const at::Tensor& x, const Stream& stream) {
  const DecoderSpec& spec = stream.spec;
  const int64_t tokens = x.size(0);
  const auto projected = project(x, {&layer.query, &layer.key, &layer.value}, stream.lora);
  at::Tensor query = projected[0].view({tokens, spec.heads, spec.head_dim});
  at::Tensor key = projected[1].view({tokens, spec.kv_heads, spec.head_dim});
  at::Tensor value = projected[2].view({tokens, spec.kv_heads, spec.head_dim});
  if (spec.qk_norm) {
    query = ops::rms_norm(query, layer.query_norm->value(), spec.norm_eps);
    key = ops::rms_norm(key, layer.key_norm->value(), spec.norm_eps);
  }
  query = ops::apply_rotary(query, stream.rope.cos, stream.rope.sin);
  key = ops::apply_rotary(key, stream.rope.cos, stream.rope.sin);

  const ops::AttentionSpec attention{.scale = 1.0 / std::sqrt(static_cast<double>(spec.head_dim)),
                                     .window = spec.windows[static_cast<size_t>(index)]};
  at::Tensor mixed;  // [T, H, D]
  if (stream.rows != nullptr) {
    mixed = ops::attention(query, key, value, attention, *stream.rows);
  } else if (stream.cache == nullptr) {
    mixed = ops::attention(query, key, value, attention, stream.cu_seqlens);
  } else {
    const auto [keys, values] = stream.cache->append(index, key, value);
    mixed = ops::attention_with_past(query, keys, values, attention);
  }
  return project(mixed.view({tokens, spec.heads * spec.head_dim}), {&layer.output}, stream.lora)[0];
}

at::Tensor feed_forward(const Layer& layer, const at::Tensor& x, const Stream& stream) {
  const auto projected = project(x, {&layer.gate, &layer.up}, stream.lora);
  return project(ops::swiglu(projected[0], projected[1]), {&layer.down}, stream.lora)[0];
}

at::Tensor transform(const Layer& layer, int64_t index, const at::Tensor& x, const Stream& stream) {
  const double eps = stream.spec.norm_eps;
  const at::Tensor attended = x + attend(layer, index, ops::rms_norm(x, layer.input_norm.value(), eps), stream);
  return attended + feed_forward(layer, ops::rms_norm(attended, layer.post_attention_norm.value(), eps), stream);
}

void check(const Batch& batch, const KvCache* cache) {
  const int64_t tokens = batch.tokens.numel();
  TORCH_CHECK(batch.tokens.dim() == 1 && batch.tokens.scalar_type() == at::kLong && tokens > 0 &&
                  batch.positions.sizes() == batch.tokens.sizes() && batch.positions.scalar_type() == at::kLong,
              "Decoder: tokens and positions are int64 [T]");
  TORCH_CHECK(batch.cu_seqlens.size() >= 2 && batch.cu_seqlens.front() == 0 && batch.cu_seqlens.back() == tokens,
              "Decoder: cu_seqlens runs from 0 to T");
  TORCH_CHECK(cache == nullptr || (batch.cu_seqlens.size() == 2 && !at::GradMode::is_enabled()),
              "Decoder: a cache continues one document, without gradients");
  TORCH_CHECK(batch.row_length == 0 || (cache == nullptr && tokens % batch.row_length == 0), "Decoder: rows of ",
              batch.row_length, " tokens in ", tokens);
}

// Builds layers from tensors whose names and shapes have been checked.
class Builder {
 public:
  Builder(std::shared_ptr<const hub::TensorSource> source, at::ScalarType type, const LoadOptions& options)
      : source_(std::move(source)), type_(type), quantization_(options.quantization), device_(options.device) {}

  /// Of layers that another rank holds, whose bytes are not read.
  [[nodiscard]] Builder elsewhere() const {
    Builder other = *this;
    other.is_here_ = false;
    return other;
  }

  [[nodiscard]] Parameter parameter(const std::string& name) const {
    const hub::TensorView& view = *source_->find(name);
    return placed(
        is_here_ ? Parameter(name, read_tensor(source_, view, type_)) : Parameter::elsewhere(name, view.shape, type_),
        view);
  }
  [[nodiscard]] Linear linear(const std::string& name, bool bias) const {
    return {name, matrix(name + ".weight"), bias ? std::optional(parameter(name + ".bias")) : std::nullopt,
            std::nullopt};
  }
  [[nodiscard]] Layer layer(const DecoderSpec& spec, int64_t index) const {
    const std::string prefix = fmt::format("model.layers.{}.", index);
    const auto head_norm = [&](const char* name) {
      return spec.qk_norm ? std::optional(parameter(prefix + name)) : std::nullopt;
    };
    return {.input_norm = parameter(prefix + "input_layernorm.weight"),
            .query = linear(prefix + "self_attn.q_proj", spec.qkv_bias),
            .key = linear(prefix + "self_attn.k_proj", spec.qkv_bias),
            .value = linear(prefix + "self_attn.v_proj", spec.qkv_bias),
            .query_norm = head_norm("self_attn.q_norm.weight"),
            .key_norm = head_norm("self_attn.k_norm.weight"),
            .output = linear(prefix + "self_attn.o_proj", spec.output_bias),
            .post_attention_norm = parameter(prefix + "post_attention_layernorm.weight"),
            .gate = linear(prefix + "mlp.gate_proj", spec.mlp_bias),
            .up = linear(prefix + "mlp.up_proj", spec.mlp_bias),
            .down = linear(prefix + "mlp.down_proj", spec.mlp_bias)};
  }

 private:
  [[nodiscard]] Parameter matrix(const std::string& name) const {
    if (!quantization_) return parameter(name);
    const hub::TensorView& view = *source_->find(name);
    Parameter result(name, read_tensor(source_, view, type_));
    result.quantize(*quantization_);
    release_pages(view.bytes);
    return placed(std::move(result), view);
  }
  [[nodiscard]] Parameter placed(Parameter parameter, const hub::TensorView& view) const {
    if (!device_.is_cpu()) {
      parameter.move_to(device_);
      release_pages(view.bytes);
    }
    return parameter;
  }

  std::shared_ptr<const hub::TensorSource> source_;
  at::ScalarType type_;
  std::optional<ops::WeightFormat> quantization_;
  at::Device device_;
  bool is_here_ = true;
};

void log_quantization(DecoderImpl& model, ops::WeightFormat format) {
  int64_t bytes = 0;
  int64_t weights = 0;
  const std::vector<Linear*> layers = model.linears();
  for (const Linear* layer : layers) {
    bytes += std::get<ops::QuantizedWeight>(layer->weight.weight()).bytes();
    weights += layer->weight.stored().numel();
  }
  const auto before = static_cast<double>(weights) * static_cast<double>(c10::elementSize(model.dtype));
  log::info("{} matrices are kept in {}: {:.2f} GB in place of {:.2f} GB", layers.size(), ops::name(format),
            static_cast<double>(bytes) / 1e9, before / 1e9);
}

}  // namespace

Decoder::Decoder(std::unique_ptr<DecoderImpl> impl) : impl_(std::move(impl)) {}
Decoder::Decoder(Decoder&&) noexcept = default;
Decoder& Decoder::operator=(Decoder&&) noexcept = default;
Decoder::~Decoder() = default;

Decoder Decoder::load(const DecoderSpec& spec, const hub::TensorSource& source, at::ScalarType storage,
                      const LoadOptions& options) {
  const std::optional<LayerSharing>& sharing = options.sharing;
  TORCH_CHECK(!sharing || !options.quantization, "Decoder: shared layers are not quantized");
  TORCH_CHECK(storage == at::kFloat || storage == at::kBFloat16, "Decoder: float32 or bfloat16");
  check_names(source, expected_tensors(spec), spec.tied_embeddings, "the model");
  auto impl = std::make_unique<DecoderImpl>();
  impl->spec = spec;
  impl->dtype = storage;
  impl->source = std::make_shared<const hub::TensorSource>(source);
  impl->device = options.device;
  const Builder builder(impl->source, storage, options);
  impl->embedding = std::make_shared<Parameter>(builder.parameter("model.embed_tokens.weight"));
  for (int64_t i = 0; i < spec.layers; ++i) {
    const bool is_here = !sharing || sharing->holds(i);
    impl->layers.push_back((is_here ? builder : builder.elsewhere()).layer(spec, i));
  }
  if (sharing) {
    std::vector<std::vector<Parameter*>> layers;
    for (Layer& layer : impl->layers) layers.push_back(DecoderImpl::weights_of(layer));
    impl->gathered = std::make_unique<GatheredLayers>(*sharing, std::move(layers));
    impl->checkpoints_gradients = true;
  }
  if (options.quantization) log_quantization(*impl, *options.quantization);
  impl->norm = builder.parameter("model.norm.weight");
  impl->head =
      spec.tied_embeddings ? impl->embedding : std::make_shared<Parameter>(builder.parameter("lm_head.weight"));
  return Decoder(std::move(impl));
}

at::Tensor Decoder::hidden_states(const Batch& batch, KvCache* cache) const {
  check(batch, cache);
  const DecoderImpl& model = *impl_;
  const Stream stream{
      .spec = model.spec,
      .cu_seqlens = batch.cu_seqlens,
      .rope = rope_table(model.spec.rope, batch.positions, batch.cu_seqlens, {model.dtype, model.device}),
      .lora = model.lora_options(),
      .cache = cache,
      .rows = row_masks(batch, model.device)};
  if (model.gathered) {
    TORCH_CHECK(cache == nullptr, "Decoder: no cache with shared layers");
    model.gathered->begin_forward(at::GradMode::is_enabled());
  }
  at::Tensor x = model.embedding->rows(ops::to_device(batch.tokens, model.device));  // [T, C]
  for (int64_t i = 0; i < model.spec.layers; ++i) {
    const Layer& layer = model.layers[static_cast<size_t>(i)];
    if (model.checkpoints_gradients && cache == nullptr) {
      // The block outlives this call: it keeps its own stream (tensors are shared, boundaries copied).
      const auto block = [&layer, &model, i, boundaries = batch.cu_seqlens, rope = stream.rope, lora = stream.lora,
                          rows = stream.rows](const at::Tensor& input) {
        const GatheredLayers::Use weights =
            model.gathered ? model.gathered->use(i) : GatheredLayers::Use();  // until the layer is computed
        return transform(layer, i, input, {model.spec, boundaries, rope, lora, nullptr, rows});
      };
      x = checkpoint(block, x, /*uses_random_numbers=*/stream.lora.dropout > 0);
    } else {
      x = transform(layer, i, x, stream);
    }
  }
  if (cache != nullptr) {
    cache->advance(batch.tokens.size(0));
  }
  return ops::rms_norm(x, model.norm->value(), model.spec.norm_eps);
}

at::Tensor Decoder::logits(const at::Tensor& hidden) const {
  return at::linear(hidden, impl_->head->value());
}

at::Tensor Decoder::loss_sum(const Batch& batch) const {
  TORCH_CHECK(batch.labels.defined() && batch.labels.sizes() == batch.tokens.sizes(), "Decoder: labels are int64 [T]");
  const at::Tensor hidden = hidden_states(batch);
  if (impl_->device.is_cpu()) return ops::linear_cross_entropy(hidden, impl_->head->value(), batch.labels);
  // What the operator could only know by waiting: whether labels are valid, and which rows have a target.
  TORCH_CHECK(batch.labels.max().item<int64_t>() < spec().vocab_size, "Decoder: a label is outside the vocabulary");
  if (batch.row_length > 0) {
    return ops::linear_cross_entropy(hidden, impl_->head->value(), ops::to_device(batch.labels, impl_->device));
  }
  const at::Tensor rows = at::nonzero(batch.labels != ops::kIgnore).squeeze(1);
  return ops::linear_cross_entropy(hidden.index_select(0, ops::to_device(rows, impl_->device)), impl_->head->value(),
                                   ops::to_device(batch.labels.index_select(0, rows), impl_->device));
}

void Decoder::take_part() const {
  if (!impl_->gathered) return;
  const at::Tensor one = at::zeros({1}, at::kLong);
  const at::Tensor nothing = loss_sum({.tokens = one, .labels = one, .positions = one, .cu_seqlens = {0, 1}}).mul(0);
  if (nothing.requires_grad()) nothing.backward();
}

void Decoder::set_training(bool training) {
  impl_->is_training = training;
}
void Decoder::set_gradient_checkpointing(bool on) {
  TORCH_CHECK(on || !impl_->gathered, "Decoder: shared layers are recomputed in the backward");
  impl_->checkpoints_gradients = on;
}
const DecoderSpec& Decoder::spec() const {
  return impl_->spec;
}
at::ScalarType Decoder::dtype() const {
  return impl_->dtype;
}
bool Decoder::caches_keys() const {
  return !impl_->device.is_hpu();
}
at::Device Decoder::device() const {
  return impl_->device;
}

}  // namespace fettle::model
