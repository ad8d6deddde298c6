// SPDX-License-Identifier: Apache-2.0
/// One decoder layer on its way to few bits.
///
/// A layer's linear layers share four inputs: query, key and value one; the output projection one; gate and up one;
/// down one. They are taken in this order, and the later ones see what the earlier, already rounded ones make of the
/// calibration records (GPTQ's "true sequential"), so that one forward pass of the layer is enough.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "config/config.h"
#include "hub/quantization.h"
#include "hub/tensor_source.h"
#include "model/decoder.h"
#include "model/layer.h"
#include "quantize/rounding.h"

namespace fettle::quantize {

/// What a model is quantized to, and how.
struct Method {
  const config::QuantizationConfig& config;
  hub::Quantization format;
  hub::DType model_type;  ///< of all other tensors, and of compressed-tensors' scales

  [[nodiscard]] Scheme scheme() const;
};

/// The calibration records on their way through the layers: micro-batches of whole documents.
struct Calibration {
  std::vector<model::Batch> batches;
  std::vector<at::Tensor> hidden;  ///< [T, C] each: what the next layer is given
};

/// The layer's tensors as they are stored: its matrices in few bits, norms and biases in the model's type.
using StoredLayer = std::vector<hub::StoredTensor>;

/// What a layer is computed with.
struct LayerPlace {
  const model::DecoderSpec& spec;
  int64_t index;
  std::shared_ptr<const hub::TensorSource> source;
  at::ScalarType compute_type;
  at::Device device;
};

/// Quantizes the layer. With calibration records, which RTN does not need, they are moved on through the quantized
/// layer. Throws Error{kDiverged} naming a matrix that is not finite, or as gptq.
StoredLayer quantize_layer(const LayerPlace& place, const Method& method, Calibration& calibration);

/// Moves the calibration records on through a layer that was quantized before; `place.source` has its tensors.
void pass_through(const LayerPlace& place, const Method& method, Calibration& calibration);

}  // namespace fettle::quantize
