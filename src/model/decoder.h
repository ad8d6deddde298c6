// SPDX-License-Identifier: Apache-2.0
/// The decoder: one model for every family, driven by its DecoderSpec.
///
/// Shapes: T tokens of all documents of a batch in one stream, n documents, C hidden size, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "hub/adapter.h"
#include "hub/tensor_source.h"
#include "model/kv_cache.h"
#include "model/layer_sharing.h"
#include "model/spec.h"
#include "ops/quantized_weight.h"

namespace fettle::model {

/// A stream of whole documents that never see each other. int64 on the CPU, wherever the model is.
struct Batch {
  at::Tensor tokens;                ///< [T]
  at::Tensor labels;                ///< [T] the token predicted at t, or -100; undefined: no loss is asked for
  at::Tensor positions;             ///< [T] restart at 0 in each document
  std::vector<int32_t> cu_seqlens;  ///< [n+1] document boundaries: 0 … T
  /// Not 0: T is a multiple of it, no document reaches over such a boundary, and the computation depends on nothing but
  /// T: the same graph for every batch. What a row is filled with is a document too.
  int64_t row_length = 0;
  bool one_document_a_row = false;  ///< and nothing but filling, which has no target, after it
};

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

struct LoadOptions {
  /// The weights of a layer are read by its holder alone, and exchanged whenever the layer computes: then all ranks
  /// compute equally often, and the layers' activations are recomputed in the backward.
  std::optional<LayerSharing> sharing = {};
  /// What the layers' matrices are kept in; embedding, head, norms and biases stay as they are. Not with `sharing`.
  std::optional<ops::WeightFormat> quantization = {};
  at::Device device = at::kCPU;  ///< where all weights go, and all computation happens
};

struct DecoderImpl;

class Decoder {
 public:
  /// Weights of `source` in `storage` (kBFloat16 or kFloat), which is also the type the model computes in. Bytes that
  /// already have that type stay mapped and are not copied; the others are converted once. Nothing is trainable yet.
  /// Throws Error{kData} naming missing, extra and mis-shaped tensors.
  static Decoder load(const DecoderSpec& spec, const hub::TensorSource& source, at::ScalarType storage,
                      const LoadOptions& options = {});
  Decoder(Decoder&&) noexcept;
  Decoder& operator=(Decoder&&) noexcept;
  ~Decoder();

  /// Freezes the model and puts PEFT's LoRA layers on the linear layers that the configuration selects: A uniform in
  /// ±1/√in_features from a generator of its own, seeded; B zero; both float32. Throws Error{kConfig} if a name matches
  /// no layer or a layer that LoRA cannot change, listing the names there are. Logs the counts.
  void add_lora(const config::LoraConfig& config, uint64_t seed);
  /// The same with the weights of a saved adapter; they can be trained on. Throws Error{kData} naming tensors of the
  /// adapter that are missing, extra or mis-shaped.
  void load_adapter(const hub::AdapterConfig& config, const hub::TensorSource& weights);
  /// Makes every weight trainable: a float32 master each, and a copy in the compute type beside it if that is another.
  void make_trainable_full();

  /// Masters: float32 leaves that require gradients, named as PEFT (base_model.model.….lora_A.weight) or, for full
  /// fine-tuning, as transformers names them. A step may change them in place; call refresh_compute_weights() after.
  [[nodiscard]] std::vector<NamedTensor> trainable() const;
  /// Copies the masters into the compute type. Needed after every change of a master when the compute type is not
  /// float32; does nothing when it is.
  void refresh_compute_weights();
  /// What adapter_model.safetensors holds, as PEFT names it. Empty without LoRA.
  [[nodiscard]] std::vector<NamedTensor> adapter_tensors() const;
  /// What adapter_config.json says; target_modules resolved to names as PEFT does. The base's name is left empty.
  [[nodiscard]] hub::AdapterConfig adapter_config() const;
  /// The base's weights by Hugging Face name: masters where there are such, else the stored tensors. A tied lm_head is
  /// absent. Not of a quantized model.
  [[nodiscard]] std::vector<NamedTensor> weights() const;

  /// Memory of all weights, LoRA's included, in the types that products use.
  [[nodiscard]] int64_t bytes() const;

  /// The stream after the final norm: [T, C], on the model's device. With a cache the batch continues the cached
  /// documents: as many, each by a token or more, positions from cache->length(i) on.
  [[nodiscard]] at::Tensor hidden_states(const Batch& batch, KvCache* cache = nullptr) const;
  /// Whether a cache helps. On a device that compiles a graph for each shape (hpu) one that grows with every token
  /// would be compiled for minutes: computing a filled row anew is faster.
  [[nodiscard]] bool caches_keys() const;
  /// [rows, C] → [rows, V] in the compute type.
  [[nodiscard]] at::Tensor logits(const at::Tensor& hidden) const;
  /// Sum of the token losses over the labels that are not -100: float32 scalar. Differentiable with respect to
  /// trainable() when gradients are enabled. Zero if there is no target.
  [[nodiscard]] at::Tensor loss_sum(const Batch& batch) const;

  /// On a rank that has no batch while others compute a loss, in the place of that and, if gradients are enabled, of
  /// its backward, where layers are shared: takes part in the exchange and adds nothing. Elsewhere it does nothing.
  void take_part() const;

  /// true: LoRA dropout is active (drawn from the default CPU generator). A new model is not in training mode.
  void set_training(bool training);
  /// true: a layer keeps only its input and computes the rest again in the backward; same results bit for bit.
  void set_gradient_checkpointing(bool on);

  [[nodiscard]] const DecoderSpec& spec() const;
  [[nodiscard]] at::ScalarType dtype() const;
  [[nodiscard]] at::Device device() const;

 private:
  explicit Decoder(std::unique_ptr<DecoderImpl> impl);
  std::unique_ptr<DecoderImpl> impl_;
};

}  // namespace fettle::model
