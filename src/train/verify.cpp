// SPDX-License-Identifier: Apache-2.0
#include "train/verify.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "hub/adapter.h"
#include "hub/json.h"
#include "hub/model_folder.h"
#include "hub/path.h"
#include "hub/tensor_source.h"
#include "model/decoder.h"
#include "model/lora_targets.h"
#include "model/spec.h"
#include "model/weights.h"
#include "train/probe.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

constexpr const char* kDamaged = "copy the folder again, or make it again from what it was made of";

/// A model, or an adapter and its base; what is not known is absent.
struct Result {
  bool is_adapter = false;
  hub::TensorSource weights;
  std::optional<hub::AdapterConfig> adapter = {};
  std::optional<hub::ModelFolder> model = {};  ///< the model itself, or the adapter's base
  std::optional<model::DecoderSpec> spec = {};
  std::string why_not = {};  ///< why there is no spec
};

/// The base of an adapter, if it is here. A name on the hub that the adapter alone gives is not downloaded.
std::optional<hub::ModelFolder> find_base(const std::string& given, const hub::AdapterConfig& adapter,
                                          const fs::path& folder) {
  config::ModelConfig options;
  options.model_name_or_path = given.empty() ? adapter.base_model_name_or_path : given;
  const fs::path path = options.model_name_or_path;
  const bool is_here = hub::is_folder(path) || (path.extension() == ".gguf" && hub::is_file(path));
  if (given.empty() && !is_here) return std::nullopt;
  const bool has_tokenizer =
      hub::path_exists(folder / "tokenizer.json") || hub::path_exists(folder / "tokenizer.model");
  if (has_tokenizer) options.tokenizer_name = folder.string();
  return hub::resolve_model(options);
}

/// Nothing for a folder that holds neither.
std::optional<Result> open_result(const fs::path& folder, const std::string& base) {
  if (hub::path_exists(folder / "config.json") && hub::has_weights(folder)) {
    Result result{.weights = hub::TensorSource::open_safetensors(folder)};
    config::ModelConfig options;
    options.model_name_or_path = folder.string();
    result.model = hub::resolve_model(options);
    return result;
  }
  if (!hub::path_exists(folder / "adapter_config.json")) return std::nullopt;
  Result result{.is_adapter = true, .weights = hub::open_adapter_weights(folder)};
  result.adapter = hub::read_adapter_config(folder);
  result.model = find_base(base, *result.adapter, folder);
  if (!result.model) {
    const std::string& name = result.adapter->base_model_name_or_path;
    result.why_not = fmt::format("the base {}is not here; give --model_name_or_path", name.empty() ? "" : name + " ");
  }
  return result;
}

/// Reads the specification, which a model of another family does not have.
void read_spec(Result& result) {
  if (!result.model) return;
  try {
    result.spec = model::DecoderSpec::from_config(result.model->config);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kConfig) throw;
    result.why_not = error.what();
  }
}

void check_tensors(const Result& result, const Say& say) {
  const size_t count = result.weights.tensors().size();
  if (!result.spec)
    return say(fmt::format("names and shapes of {} tensors were not checked: {}", count, result.why_not));
  if (result.is_adapter) {
    model::check_names(result.weights, model::expected_adapter_tensors(*result.spec, *result.adapter),
                       /*tied_embeddings=*/false, "the adapter");
  } else {
    model::check_names(result.weights, model::stored_tensors(*result.spec, result.weights),
                       result.spec->tied_embeddings, "the model");
  }
  say(fmt::format("{} tensors, with the names and shapes of {}", count,
                  result.is_adapter ? "adapter_config.json and the base" : "config.json"));
}

bool is_float(hub::DType type) {
  return type == hub::DType::kF64 || type == hub::DType::kF32 || type == hub::DType::kF16 || type == hub::DType::kBF16;
}

void check_values(const Result& result, const fs::path& folder, const Say& say) {
  int64_t values = 0;
  for (const hub::TensorView& view : result.weights.tensors()) {
    if (!is_float(view.dtype)) continue;
    if (!model::is_finite(view)) {
      throw Error(ExitCode::kData, fmt::format("{}: tensor {} holds NaN or infinity", folder.string(), view.name),
                  "the training or the merge diverged: make it again");
    }
    values += hub::element_count(view);
  }
  say(fmt::format("{} values, all finite", values));
}

/// In float32.
model::Decoder load(const Result& result) {
  model::Decoder decoder = model::Decoder::load(*result.spec, result.model->open_weights(), at::kFloat);
  if (result.is_adapter) decoder.load_adapter(*result.adapter, result.weights);
  return decoder;
}

void check_logits(const Result& result, const fs::path& folder, const Say& say) {
  if (!hub::path_exists(folder / kProbeFile)) {
    return say(fmt::format("logits were not compared: there is no {}", kProbeFile));
  }
  const Probe probe = read_probe(folder);
  if (!result.spec) return say(fmt::format("logits were not compared: {}", result.why_not));
  const ProbeResult found = compare_with_probe(load(result), probe);
  const std::string text = fmt::format("logits in float32 differ from {} by up to {:.2g}, of up to {:.3g}", kProbeFile,
                                       found.difference, found.scale);
  if (found.agrees()) return say(fmt::format("{} (tolerance {:.2g})", text, kProbeTolerance * found.scale));
  throw Error(ExitCode::kData, fmt::format("{}: {}", folder.string(), text),
              result.is_adapter ? "the base is another one, or one of both is damaged" : kDamaged);
}

/// Nothing for a folder that holds none.
std::optional<Result> checked_result(const fs::path& folder, const std::string& base, const Say& say) {
  std::optional<Result> result = open_result(folder, base);
  if (!result) return result;
  read_spec(*result);
  check_tensors(*result, say);
  check_values(*result, folder, say);
  return result;
}

}  // namespace

void verify_result(const fs::path& folder, const std::string& base, const Say& say) {
  const std::optional<Result> result = checked_result(folder, base, say);
  if (result) check_logits(*result, folder, say);
}

void add_probe(const fs::path& folder, const std::string& base, const Say& say) {
  const std::optional<Result> result = checked_result(folder, base, say);
  if (!result) return;
  if (!result->spec) return say(fmt::format("wrote no {}: {}", kProbeFile, result->why_not));
  const text::Tokenizer tokenizer = text::Tokenizer::load(result->model->tokenizer_folder);
  write_probe(folder, make_probe(load(*result), tokenizer));
  say(fmt::format("wrote {}", (folder / kProbeFile).string()));
}

}  // namespace fettle::train
