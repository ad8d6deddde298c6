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
#include <memory>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "model/checkpoint.h"
#include "model/decoder_impl.h"
#include "model/layer_reader.h"
#include "model/rope.h"
#include "model/weights.h"
#include "ops/linear_cross_entropy.h"
#include "ops/rms_norm.h"
#include "ops/row_attention.h"
#include "ops/to_device.h"

namespace fettle::model {
namespace {

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

void check(const Batch& batch, const KvCache* cache) {
  const int64_t tokens = batch.tokens.numel();
  TORCH_CHECK(batch.tokens.dim() == 1 && batch.tokens.scalar_type() == at::kLong && tokens > 0 &&
                  batch.positions.sizes() == batch.tokens.sizes() && batch.positions.scalar_type() == at::kLong,
              "Decoder: tokens and positions are int64 [T]");
  TORCH_CHECK(batch.cu_seqlens.size() >= 2 && batch.cu_seqlens.front() == 0 && batch.cu_seqlens.back() == tokens,
              "Decoder: cu_seqlens runs from 0 to T");
  const auto documents = static_cast<int64_t>(batch.cu_seqlens.size()) - 1;
  TORCH_CHECK(cache == nullptr || (documents == cache->documents() && !at::GradMode::is_enabled()),
              "Decoder: a cache continues its own documents, without gradients");
  const bool is_without_empty = std::ranges::adjacent_find(batch.cu_seqlens) == batch.cu_seqlens.end();
  TORCH_CHECK(cache == nullptr || is_without_empty, "Decoder: each cached document is continued by a token or more");
  TORCH_CHECK(batch.row_length == 0 || (cache == nullptr && tokens % batch.row_length == 0), "Decoder: rows of ",
              batch.row_length, " tokens in ", tokens);
}

/// `format`: "int4", or "4 bits".
void log_quantization(DecoderImpl& model, std::string_view format) {
  int64_t bytes = 0;
  int64_t weights = 0;
  int64_t matrices = 0;
  for (const Linear* layer : model.linears()) {
    if (!layer->weight.is_quantized()) continue;
    ++matrices;
    bytes += ops::bytes(layer->weight.weight());
    weights += layer->weight.stored().numel();
  }
  const auto before = static_cast<double>(weights) * static_cast<double>(c10::elementSize(model.dtype));
  log::info("{} matrices are kept in {}: {:.2f} GB in place of {:.2f} GB", matrices, format,
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
  TORCH_CHECK(!sharing || !(options.quantization || spec.quantization), "Decoder: shared layers are not quantized");
  TORCH_CHECK(storage == at::kFloat || storage == at::kBFloat16, "Decoder: float32 or bfloat16");
  check_names(source, stored_tensors(spec, source), spec.tied_embeddings, "the model");
  auto impl = std::make_unique<DecoderImpl>();
  impl->spec = spec;
  impl->dtype = storage;
  impl->source = std::make_shared<const hub::TensorSource>(source);
  impl->device = options.device;
  const LayerReader reader(impl->source, storage, options.device, options.quantization);
  impl->embedding = std::make_shared<Parameter>(reader.parameter("model.embed_tokens.weight"));
  for (int64_t i = 0; i < spec.layers; ++i) {
    const bool is_here = !sharing || sharing->holds(i);
    impl->layers.push_back((is_here ? reader : reader.elsewhere()).layer(spec, i));
  }
  if (sharing) {
    std::vector<std::vector<Parameter*>> layers;
    for (Layer& layer : impl->layers) layers.push_back(DecoderImpl::weights_of(layer));
    impl->gathered = std::make_unique<GatheredLayers>(*sharing, std::move(layers));
    impl->checkpoints_gradients = true;
  }
  if (options.quantization) log_quantization(*impl, ops::name(*options.quantization));
  if (spec.quantization) log_quantization(*impl, fmt::format("{} bits", spec.quantization->bits));
  impl->norm = reader.parameter("model.norm.weight");
  impl->head = spec.tied_embeddings ? impl->embedding : std::make_shared<Parameter>(reader.parameter("lm_head.weight"));
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
    cache->advance(batch.cu_seqlens);
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
