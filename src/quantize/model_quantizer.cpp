// SPDX-License-Identifier: Apache-2.0
#include "quantize/model_quantizer.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <chrono>
#include <map>
#include <numeric>
#include <optional>
#include <span>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/watchdog.h"
#include "hub/path.h"
#include "hub/safetensors.h"
#include "model/layer_reader.h"
#include "model/weights.h"
#include "ops/to_device.h"
#include "quantize/stored_layer.h"

namespace fettle::quantize {
namespace fs = std::filesystem;
namespace {

constexpr const char* kIdentity = "identity";

fs::path layer_file(const Job& job, int64_t index) {
  return job.layers_folder / fmt::format("layer-{:05}.safetensors", index);
}

/// Its hash, written after it.
fs::path hash_file(const fs::path& layer) {
  return layer.string() + ".b3";
}

/// Stands for one layer of the job.
std::string layer_identity(const Job& job, int64_t index) {
  return fmt::format("{} {}", job.identity, index);
}

/// A finished layer of a job that was stopped, if it is one of this job's and whole.
std::optional<hub::TensorSource> finished_layer(const Job& job, int64_t index) {
  const fs::path file = layer_file(job, index);
  if (!hub::is_file(file) || !hub::is_file(hash_file(file))) return std::nullopt;
  Blake3 hash;
  update_from_file(hash, file);
  if (hash.finish() != read_file(hash_file(file))) {
    log::warning("{} is damaged: the layer is quantized again", file.string());
    return std::nullopt;
  }
  const auto mapped = MappedFile::open(file);
  const hub::Safetensors content = hub::parse_safetensors(mapped->bytes(), file.string());
  const auto found = content.metadata.find(kIdentity);
  if (found == content.metadata.end() || found->second != layer_identity(job, index)) return std::nullopt;
  return hub::TensorSource::open_safetensors(file);
}

void write_layer(const Job& job, int64_t index, const StoredLayer& layer) {
  const SectionMark saving(Section::kSave, layer_file(job, index).string());
  std::vector<hub::TensorView> views;
  for (const hub::StoredTensor& tensor : layer) views.push_back(tensor.view);
  const fs::path file = layer_file(job, index);
  fs::remove(hash_file(file));
  write_file(hash_file(file), hub::write_safetensors(file, views, {{kIdentity, layer_identity(job, index)}}));
}

/// What the first layer is given.
Calibration embed(const Job& job, std::vector<model::Batch> batches) {
  const at::NoGradGuard no_gradients;
  Calibration calibration{.batches = std::move(batches), .hidden = {}};
  if (calibration.batches.empty()) return calibration;
  const model::Parameter embedding =
      model::LayerReader(job.source, job.compute_type, job.device).parameter("model.embed_tokens.weight");
  for (const model::Batch& batch : calibration.batches) {
    calibration.hidden.push_back(embedding.rows(ops::to_device(batch.tokens, job.device)));
  }
  return calibration;
}

/// Says how far the work is.
class Progress {
 public:
  Progress(int64_t layers) : layers_(layers) {}

  void finished(int64_t index) {
    const double seconds = std::chrono::duration<double>(Clock::now() - began_).count();
    const auto each = seconds / static_cast<double>(++done_);
    const auto left = each * static_cast<double>(layers_ - index - 1);
    log::info("layer {} of {} quantized in {:.1f} s; {:.0f} s are left", index + 1, layers_,
              std::chrono::duration<double>(Clock::now() - last_).count(), left);
    last_ = Clock::now();
  }
  void skipped() { began_ = last_ = Clock::now(); }

 private:
  using Clock = std::chrono::steady_clock;

  int64_t layers_;
  int64_t done_ = 0;
  Clock::time_point began_ = Clock::now();
  Clock::time_point last_ = Clock::now();
};

}  // namespace

void require_fitting(const model::DecoderSpec& spec, const hub::Quantization& format) {
  std::vector<model::TensorShape> shapes = model::expected_tensors(spec);
  std::erase_if(shapes,
                [](const auto& tensor) { return tensor.shape.size() != 2 || !model::is_in_layer(tensor.name); });
  int64_t common = 0;  // of all layers' inputs
  for (const model::TensorShape& tensor : shapes) common = std::gcd(common, tensor.shape[1]);
  for (const model::TensorShape& tensor : shapes) {
    const std::string module = model::module_of(tensor.name);
    const int64_t columns = tensor.shape[1];
    if (columns % format.group_of(columns) != 0) {
      throw Error(ExitCode::kConfig,
                  fmt::format("woq_group_size {} does not divide the {} inputs of {}", format.group, columns, module),
                  common < 8 ? "set woq_group_size to -1: no group of 8 or more divides every layer's inputs"
                             : fmt::format("set woq_group_size to a divisor of {}, or to -1", common));
    }
    hub::require_representable(format, module, tensor.shape[0], columns);
  }
}

void quantize_layers(const Job& job, const Method& method, std::vector<model::Batch> batches) {
  make_directories(job.layers_folder);
  Calibration calibration = embed(job, std::move(batches));
  Progress progress(job.spec.layers);
  bool continues = true;
  for (int64_t i = 0; i < job.spec.layers; ++i) {
    const SectionMark quantizing(Section::kStep, fmt::format("layer {}", i));
    LayerPlace place{job.spec, i, job.source, job.compute_type, job.device};
    const auto finished = continues ? finished_layer(job, i) : std::nullopt;
    if (finished) {
      log::info("layer {} of {} is there already", i + 1, job.spec.layers);
      place.source = std::make_shared<const hub::TensorSource>(*finished);
      pass_through(place, method, calibration);
      progress.skipped();
      continue;
    }
    continues = false;
    write_layer(job, i, quantize_layer(place, method, calibration));
    progress.finished(i);
  }
}

void write_quantized_weights(const fs::path& folder, const Job& job, const Method& method, uint64_t max_shard_size) {
  std::vector<hub::TensorSource> layers;  // their files stay mapped
  std::vector<hub::StoredTensor> converted;
  std::vector<hub::TensorView> views;
  for (int64_t i = 0; i < job.spec.layers; ++i) {
    layers.push_back(hub::TensorSource::open_safetensors(layer_file(job, i)));
    views.insert(views.end(), layers.back().tensors().begin(), layers.back().tensors().end());
  }
  for (const model::TensorShape& tensor : model::expected_tensors(job.spec)) {
    if (model::is_in_layer(tensor.name)) continue;
    const hub::TensorView& view = *job.source->find(tensor.name);
    if (!model::is_finite(view)) {
      throw Error(ExitCode::kDiverged, fmt::format("tensor {} holds NaN or infinity", tensor.name),
                  "the model was saved after it had diverged: give another");
    }
    if (view.dtype == method.model_type) {
      views.push_back(view);
    } else {
      converted.push_back(store(view.name, model::read_tensor(job.source, view, at::kFloat), method.model_type));
      views.push_back(converted.back().view);
    }
  }
  hub::write_model_safetensors(folder, views, max_shard_size);
}

}  // namespace fettle::quantize
