// SPDX-License-Identifier: Apache-2.0
#include "train/gguf_export.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "device/device.h"
#include "hub/adapter.h"
#include "hub/gguf_format.h"
#include "hub/gguf_writer.h"
#include "hub/model_folder.h"
#include "hub/path.h"
#include "model/lora_targets.h"
#include "model/spec.h"
#include "model/weights.h"
#include "text/tokenizer.h"
#include "train/gguf_metadata.h"

namespace fettle::train {
namespace {

namespace fs = std::filesystem;
using hub::DType;

DType dtype_of(const std::string& name) {
  constexpr std::array kTypes = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                 DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1};
  const auto* found = std::ranges::find_if(kTypes, [&](DType dtype) { return hub::gguf_type(dtype).name == name; });
  if (found == kTypes.end()) throw Error(ExitCode::kUsage, fmt::format("gguf_type: '{}' is not known", name));
  return *found;
}

bool has_blocks(DType dtype) {
  return hub::block_layout(dtype).elements > 1;
}

/// Removes, too, what an export that was killed left beside it.
void require_output(const fs::path& output, bool overwrite) {
  const bool is_file = hub::is_file(output) || !hub::path_exists(output);  // or a pipe
  if (is_file && output.extension() != ".gguf") {                          // by which readers know it
    throw Error(ExitCode::kUsage, fmt::format("output: {} does not end in .gguf", output.string()),
                "name a file .gguf");
  }
  remove_stale_temporaries(output.has_parent_path() ? output.parent_path() : fs::path("."));
  if (overwrite || !hub::path_exists(output)) return;
  throw Error(ExitCode::kConfig, fmt::format("output: {} is there already", output.string()),
              "name another file, or set overwrite_output to replace it");
}

hub::ModelFolder resolve_dense_model(const config::ModelConfig& model) {
  hub::ModelFolder folder = hub::resolve_model(model);
  if (const auto found = folder.config.find("quantization_config"); found != folder.config.end() && !found->is_null()) {
    throw Error(ExitCode::kConfig,
                fmt::format("model_name_or_path: {} is quantized already (quantization_config)", folder.path.string()),
                "give the model that it was made from; gguf_type quantizes anew");
  }
  return folder;
}

/// What llama.cpp shows as the model's name: the last part of a path or of a hub name.
std::string display_name(const std::string& name_or_path) {
  const fs::path path = hub::path_exists(name_or_path) ? fs::canonical(name_or_path) : fs::path(name_or_path);
  return path.extension() == ".gguf" ? path.stem().string() : path.filename().string();
}

/// Chooses the tensors' types and says afterwards which did not get the one that was asked for.
class TypeChoice {
 public:
  explicit TypeChoice(DType wanted) : wanted_(wanted) {}

  /// `is_output`: the output projection, which suffers most.
  DType of(const std::string& name, const std::vector<int64_t>& shape, bool is_output = false) {
    if (shape.size() < 2) return DType::kF32;
    if (shape.back() % hub::block_layout(wanted_).elements != 0) {
      ragged_.push_back(name);
      return DType::kF16;
    }
    return is_output && has_blocks(wanted_) ? DType::kQ8_0 : wanted_;
  }

  void log_exceptions() const {
    if (ragged_.empty()) return;
    log::warning("f16 instead of {}, as their rows are not whole blocks of {}: {}{}", hub::gguf_type(wanted_).name,
                 hub::block_layout(wanted_).elements,
                 fmt::join(ragged_.begin(), ragged_.begin() + std::min<std::ptrdiff_t>(3, std::ssize(ragged_)), ", "),
                 ragged_.size() > 3 ? fmt::format(" and {} more", ragged_.size() - 3) : "");
  }

 private:
  DType wanted_;
  std::vector<std::string> ragged_;
};

/// How many heads' rows llama.cpp wants interleaved in this tensor (Hugging Face's name).
int64_t interleaved_heads(const model::DecoderSpec& spec, std::string_view name) {
  if (gguf_architecture(spec) != "llama") return 0;
  return hub::is_query(name) ? spec.heads : hub::is_key(name) ? spec.kv_heads : 0;
}

std::string gguf_name(const std::string& hf_name) {
  const auto name = hub::gguf_tensor_name(hf_name);
  if (!name) throw Error(ExitCode::kInternal, fmt::format("tensor {} has no name in GGUF files", hf_name));
  return *name;
}

std::vector<hub::GgufTensor> model_tensors(const model::DecoderSpec& spec, const hub::TensorSource& source,
                                           TypeChoice& types) {
  const std::string output = spec.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  std::vector<hub::GgufTensor> tensors;
  if (std::vector<float> factors = rope_factors(spec.rope); !factors.empty()) {
    hub::TensorView shape{.name = "rope_scaling", .dtype = DType::kF32, .shape = {std::ssize(factors)}, .bytes = {}};
    tensors.push_back({std::string(hub::kGgufRopeFactors), DType::kF32, std::move(shape), 0, std::move(factors)});
  }
  for (const model::TensorShape& tensor : model::expected_tensors(spec)) {
    tensors.push_back({gguf_name(tensor.name), types.of(tensor.name, tensor.shape, tensor.name == output),
                       *source.find(tensor.name), interleaved_heads(spec, tensor.name)});
  }
  return tensors;
}

/// generation_config's, else config.json's.
std::vector<int64_t> stop_ids(const hub::ModelFolder& folder, const model::DecoderSpec& spec) {
  std::vector<int64_t> ids = hub::configured_eos_ids(folder.generation_config);
  std::erase_if(ids, [](int64_t id) { return id < 0; });
  return ids.empty() ? spec.eos_ids : ids;
}

/// The numbers of a file that is about to be written.
void write(const fs::path& output, const hub::GgufMetadata& metadata, const std::vector<hub::GgufTensor>& tensors) {
  int64_t bytes = 0;
  for (const hub::GgufTensor& tensor : tensors) bytes += hub::gguf_bytes(tensor);
  log::info("writing {} tensors, {:.1f} MB", tensors.size(), static_cast<double>(bytes) / 1e6);
  hub::write_gguf(output, metadata, tensors, device::usable_cores());
}

void export_model(const config::ModelConfig& options, DType dtype, const fs::path& output) {
  const hub::ModelFolder folder = resolve_dense_model(options);
  const auto spec = model::DecoderSpec::from_config(folder.config);
  const text::Tokenizer tokenizer = text::Tokenizer::load(folder.tokenizer_folder);
  hub::GgufMetadata metadata;
  describe_file(metadata, gguf_architecture(spec), "model", display_name(options.model_name_or_path));
  describe_model(metadata, spec);
  describe_types(metadata, dtype);
  describe_tokenizer(metadata, tokenizer, spec, stop_ids(folder, spec));
  const hub::TensorSource source = folder.open_weights();
  model::check_names(source, model::expected_tensors(spec), spec.tied_embeddings, "the model");
  TypeChoice types(dtype);
  const auto tensors = model_tensors(spec, source, types);
  types.log_exceptions();
  write(output, metadata, tensors);
}

/// llama.cpp scales by alpha ÷ rank, and by 1 where alpha is 0.
double gguf_alpha(const hub::AdapterConfig& adapter) {
  if (adapter.lora_alpha == 0) {
    throw Error(ExitCode::kConfig, "adapter_config.json: lora_alpha is 0, which llama.cpp takes for 'not given'",
                "such an adapter changes nothing: export the model without it");
  }
  return adapter.use_rslora ? adapter.lora_alpha * std::sqrt(static_cast<double>(adapter.r)) : adapter.lora_alpha;
}

void require_lora_alone(const hub::AdapterConfig& adapter) {
  if (adapter.modules_to_save.empty()) return;
  throw Error(ExitCode::kConfig,
              fmt::format("adapter_config.json: modules_to_save [{}] has no place in a GGUF adapter",
                          fmt::join(adapter.modules_to_save, ", ")),
              "merge the adapter into the model with fettle merge, and export the result");
}

/// base_model.model.<module>.lora_A.weight → <GGUF's name of the module>.weight.lora_a; B has the module's rows.
hub::GgufTensor adapter_tensor(const model::DecoderSpec& spec, const hub::TensorView& view, TypeChoice& types) {
  constexpr std::string_view kA = ".lora_A.weight";
  const bool is_a = view.name.ends_with(kA);
  const size_t prefix = std::string_view(model::kPeftPrefix).size();
  const std::string weight = view.name.substr(prefix, view.name.size() - prefix - kA.size()) + ".weight";
  return {gguf_name(weight) + (is_a ? ".lora_a" : ".lora_b"), types.of(view.name, view.shape), view,
          is_a ? 0 : interleaved_heads(spec, weight)};
}

void export_adapter(const config::ModelConfig& options, DType dtype, const fs::path& output) {
  if (has_blocks(dtype) && dtype != DType::kQ8_0) {
    throw Error(ExitCode::kConfig,
                fmt::format("gguf_type: an adapter is not written as {}", hub::gguf_type(dtype).name),
                "f32, f16, bf16 and q8_0 are");
  }
  const hub::ModelFolder folder = resolve_dense_model(options);
  const auto spec = model::DecoderSpec::from_config(folder.config);
  const fs::path adapter_folder = hub::resolve_folder(options.adapter_name_or_path, options, "adapter_name_or_path");
  const hub::AdapterConfig adapter = hub::read_adapter_config(adapter_folder);
  require_lora_alone(adapter);
  hub::GgufMetadata metadata;
  describe_file(metadata, gguf_architecture(spec), "adapter", display_name(options.adapter_name_or_path));
  metadata.text("adapter.type", "lora");
  metadata.number("adapter.lora.alpha", gguf_alpha(adapter));
  describe_types(metadata, dtype);
  const hub::TensorSource source = hub::open_adapter_weights(adapter_folder);
  const auto expected = model::expected_adapter_tensors(spec, adapter);
  model::check_names(source, expected, /*tied_embeddings=*/false, "the adapter");
  TypeChoice types(dtype);
  std::vector<hub::GgufTensor> tensors;
  for (const model::TensorShape& tensor : expected) {
    tensors.push_back(adapter_tensor(spec, *source.find(tensor.name), types));
  }
  types.log_exceptions();
  write(output, metadata, tensors);
}

}  // namespace

void export_gguf(const config::ModelConfig& model, const config::ExportConfig& options,
                 const config::PreprocessConfig& files) {
  const DType dtype = dtype_of(options.gguf_type);
  require_output(files.output, files.overwrite_output);
  if (model.adapter_name_or_path.empty()) return export_model(model, dtype, files.output);
  export_adapter(model, dtype, files.output);
}

}  // namespace fettle::train
