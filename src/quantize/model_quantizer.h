// SPDX-License-Identifier: Apache-2.0
/// A whole model in few bits, one layer in memory at a time.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "hub/tensor_source.h"
#include "model/spec.h"
#include "quantize/layer_quantizer.h"

namespace fettle::quantize {

/// Throws Error{kConfig} naming the first linear layer that the method's groups do not divide or that its format cannot
/// hold.
void require_fitting(const model::DecoderSpec& spec, const hub::Quantization& format);

struct Job {
  const model::DecoderSpec& spec;
  std::shared_ptr<const hub::TensorSource> source;
  at::ScalarType compute_type;
  at::Device device;
  /// Where finished layers wait, one file each, so that a job that was stopped goes on after the last of them.
  std::filesystem::path layers_folder;
  /// Equal for jobs that make the same of every layer: one that left other layers here is not continued.
  std::string identity;
};

/// Quantizes all layers into files in `job.layers_folder`. `batches`: the calibration records; none for RTN. Logs each
/// layer with the time that is left. Throws as quantize_layer, Error{kIo} or {kPermission}, and {kPreempted} when it
/// was told to stop.
void quantize_layers(const Job& job, const Method& method, std::vector<model::Batch> batches);

/// Writes the model's weights of those files and of the tensors outside the layers: model.safetensors or shards.
void write_quantized_weights(const std::filesystem::path& folder, const Job& job, const Method& method,
                             uint64_t max_shard_size);

}  // namespace fettle::quantize
