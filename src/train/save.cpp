// SPDX-License-Identifier: Apache-2.0
#include "train/save.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "hub/adapter.h"
#include "hub/safetensors.h"
#include "train/checkpoint.h"
#include "train/tensor_file.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

void copy_tokenizer(const text::Tokenizer& tokenizer, const fs::path& folder) {
  for (const fs::path& file : tokenizer.files()) {
    const fs::path parent = file.parent_path().filename();
    const fs::path place = parent == "additional_chat_templates" ? folder / parent : folder;
    make_directories(place);
    write_file(place / file.filename(), read_file(file));
  }
}

const char* type_name(at::ScalarType type) {
  return type == at::kFloat ? "float32" : type == at::kHalf ? "float16" : "bfloat16";
}

}  // namespace

hub::AdapterConfig adapter_config(const model::Decoder& model, const config::ModelConfig& base) {
  hub::AdapterConfig config = model.adapter_config();
  config.base_model_name_or_path = base.model_name_or_path;
  if (base.model_revision != config::ModelConfig().model_revision) config.revision = base.model_revision;
  return config;
}

AddFiles adapter_files(const model::Decoder& model, const config::ModelConfig& base) {
  return
      [adapter = adapter_config(model, base)](const fs::path& folder) { hub::write_adapter_config(folder, adapter); };
}

AddFiles model_files(const hub::ModelFolder& base) {
  return [text = base.config.dump(2) + '\n'](const fs::path& folder) { write_file(folder / "config.json", text); };
}

void save_adapter(const fs::path& folder, const model::Decoder& model, const config::ModelConfig& base,
                  const text::Tokenizer& tokenizer) {
  const std::vector<model::NamedTensor> tensors = model.adapter_tensors();
  require_finite(tensors);
  copy_tokenizer(tokenizer, folder);
  hub::write_adapter_config(folder, adapter_config(model, base));
  hub::write_safetensors(folder / "adapter_model.safetensors", TensorViews(tensors).views(), {{"format", "pt"}});
  sync_directory(folder);
}

bool has_result(const fs::path& folder, bool is_adapter) {
  try {
    if (is_adapter) {
      hub::read_adapter_config(folder);
      hub::open_adapter_weights(folder);
    } else {
      read_file(folder / "config.json");
      hub::TensorSource::open_safetensors(folder);
    }
    return true;
  } catch (const Error& error) {
    if (leaves_open(error)) throw;
    return false;
  }
}

at::ScalarType stored_type(const hub::TensorSource& source) {
  const auto& tensors = source.tensors();
  const auto largest = std::max_element(tensors.begin(), tensors.end(), [](const auto& left, const auto& right) {
    return hub::element_count(left) < hub::element_count(right);
  });
  if (largest == tensors.end() || largest->dtype == hub::DType::kF32) return at::kFloat;
  return largest->dtype == hub::DType::kF16 ? at::kHalf : at::kBFloat16;
}

void write_model_files(const fs::path& folder, const hub::ModelFolder& base, const text::Tokenizer& tokenizer,
                       at::ScalarType type) {
  copy_tokenizer(tokenizer, folder);
  nlohmann::json config = base.config;
  config.erase("torch_dtype");
  config["dtype"] = type_name(type);
  if (!base.generation_config.empty()) {
    write_file(folder / "generation_config.json", base.generation_config.dump(2) + '\n');
  }
  write_file(folder / "config.json", config.dump(2) + '\n');  // last: what makes the folder a model
}

void save_full_model(const fs::path& folder, const model::Decoder& model, const hub::ModelFolder& base,
                     const text::Tokenizer& tokenizer, uint64_t max_shard_size) {
  const at::ScalarType type = stored_type(base.open_weights());
  std::vector<model::NamedTensor> tensors;
  for (const model::NamedTensor& weight : model.weights()) {
    tensors.push_back({weight.name, weight.tensor.detach().to(type)});
  }
  require_finite(tensors);
  write_model_files(folder, base, tokenizer, type);
  hub::write_model_safetensors(folder, TensorViews(tensors).views(), max_shard_size);
  sync_directory(folder);
}

model::Decoder load_result(const fs::path& folder, const hub::ModelFolder& base, bool is_adapter,
                           at::ScalarType compute_type, const model::LoadOptions& options) {
  if (!is_adapter) {
    const nlohmann::json config = nlohmann::json::parse(read_file(folder / "config.json"));
    return model::Decoder::load(model::DecoderSpec::from_config(config), hub::TensorSource::open_safetensors(folder),
                                compute_type, options);
  }
  model::Decoder model =
      model::Decoder::load(model::DecoderSpec::from_config(base.config), base.open_weights(), compute_type, options);
  model.load_adapter(hub::read_adapter_config(folder), hub::open_adapter_weights(folder));
  return model;
}

}  // namespace fettle::train
