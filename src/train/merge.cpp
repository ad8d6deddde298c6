// SPDX-License-Identifier: Apache-2.0
#include "train/merge.h"

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "config/value.h"
#include "hub/path.h"
#include "hub/safetensors.h"
#include "train/inputs.h"
#include "train/made_model.h"
#include "train/merge_check.h"
#include "train/merged_weights.h"
#include "train/model_card.h"
#include "train/output_folder.h"
#include "train/probe.h"
#include "train/ranks.h"
#include "train/save.h"
#include "train/training_inputs.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

constexpr const char* kScratchFile = ".adapters.safetensors";

ModelInputs load_base(const config::ModelConfig& model) {
  hub::ModelFolder base = hub::resolve_model(model);
  if (!base.config.value("quantization_config", nlohmann::json()).is_null()) {
    throw Error(ExitCode::kConfig,
                fmt::format("model_name_or_path: {} is quantized, and its weights cannot be added to",
                            model.model_name_or_path),
                "merge into the model that it was made from, then quantize the result");
  }
  return load_inputs(model);
}

/// What the merge reads.
std::vector<std::string> inputs_of(const config::Config& config, const std::vector<AdapterName>& adapters) {
  std::vector<std::string> inputs = {config.model.model_name_or_path, config.model.tokenizer_name,
                                     config.model.config_name};
  for (const AdapterName& adapter : adapters) inputs.push_back(adapter.name);
  return inputs;
}

/// What decides the merged model, and what it is compared on.
std::string identity(const config::Config& config, const ModelInputs& inputs,
                     const std::vector<WeightedAdapter>& adapters, const std::optional<RecordsToTry>& records) {
  nlohmann::json facts = {{"base", weights_fingerprint(inputs.base.open_weights())},
                          {"description", description_fingerprint(inputs.base, inputs.tokenizer)},
                          {"max_shard_size", config.output.max_shard_size},
                          {"verify_saved_model", config.output.verify_saved_model}};
  for (const WeightedAdapter& adapter : adapters) {
    facts["adapters"].push_back({weights_fingerprint(adapter.weights), adapter.config.lora_alpha,
                                 adapter.config.use_rslora, adapter.name.weight});
  }
  if (records) facts["records"] = records->records.fingerprint();
  return sha256(facts.dump());
}

void write_weights(const config::Config& config, const hub::ModelFolder& base, MergedWeights& weights) {
  const fs::path folder = config.output.output_dir;
  const hub::TensorBytes bytes = [&weights](const hub::TensorView& view) { return weights.bytes(view); };
  const std::string& limit = config.output.max_shard_size;
  if (base.is_gguf || limit != config::OutputConfig().max_shard_size) {
    const auto most = static_cast<uint64_t>(config::parse_bytes(limit).value());
    return hub::write_model_safetensors(folder, weights.views(), most, bytes);
  }
  std::map<std::string, std::string> files = hub::weight_files(base.path);
  if (weights.unties()) files.try_emplace("lm_head.weight", files.at("model.embed_tokens.weight"));
  hub::write_model_safetensors(folder, weights.views(), files, bytes);
}

/// One merge. Members are what several of its stages need.
class Merging {
 public:
  Merging(const config::Config& config, at::Device device)
      : config_(config), device_(device), inputs_(load_base(config.model)), folder_(config.output.output_dir) {}
  nlohmann::ordered_json run();

 private:
  [[nodiscard]] model::Decoder load(const model::DecoderSpec& spec, const hub::TensorSource& source) const {
    return model::Decoder::load(spec, source, at::kFloat, {.device = device_});
  }
  [[nodiscard]] nlohmann::ordered_json compare(const std::vector<WeightedAdapter>& adapters,
                                               const std::optional<RecordsToTry>& found, double bound) const;

  const config::Config& config_;
  at::Device device_;
  ModelInputs inputs_;
  fs::path folder_;
};

nlohmann::ordered_json Merging::compare(const std::vector<WeightedAdapter>& adapters,
                                        const std::optional<RecordsToTry>& found, double bound) const {
  const auto records = found ? std::optional(found->records) : std::nullopt;
  ComparedRecords compared{compared_documents(records, inputs_.tokenizer, inputs_.spec.vocab_size), records, {}};
  if (records) compared.order = evaluation_order(config_, *records, device_);
  std::optional<model::Decoder> model = load(inputs_.spec, inputs_.base.open_weights());
  const Answers base = answers_of(*model, compared);
  load_adapters(*model, adapters, folder_ / kScratchFile);
  const Answers adapted = answers_of(*model, compared);
  model.reset();
  model = load(model::DecoderSpec::from_config(inputs_.base.config), hub::TensorSource::open_safetensors(folder_));
  nlohmann::ordered_json results = compare_merged(base, adapted, answers_of(*model, compared), bound);
  write_probe(folder_, make_probe(*model, inputs_.tokenizer));
  return results;
}

nlohmann::ordered_json Merging::run() {
  require_place_for_model(folder_, inputs_of(config_, adapter_names(config_)));
  std::vector<WeightedAdapter> adapters = read_adapters(config_, inputs_.spec);
  const bool is_compared = config_.output.verify_saved_model;
  const std::optional<RecordsToTry> records = is_compared ? records_to_try(config_, inputs_) : std::nullopt;
  const std::string made_of = identity(config_, inputs_, adapters, records);
  if (auto earlier = made_earlier(folder_, made_of)) {
    log::info("the model is in {} already", folder_.string());
    return *std::move(earlier);
  }
  require_free(folder_, config_.output.overwrite_output_dir);
  MergedWeights weights(inputs_.base, inputs_.spec, adapters);
  const FolderLock lock(folder_);
  begin_model(folder_);
  fs::remove(folder_ / kScratchFile);
  const at::ScalarType type = stored_type(inputs_.base.open_weights());
  write_weights(config_, inputs_.base, weights);
  if (weights.unties()) inputs_.base.config["tie_word_embeddings"] = false;
  nlohmann::ordered_json results = nlohmann::ordered_json::object();
  for (const WeightedAdapter& adapter : adapters) {
    results["merged_adapters"].push_back({{"adapter", adapter.name.name}, {"weight", adapter.name.weight}});
  }
  if (is_compared) results.update(compare(adapters, records, rounding_bound(weights)));
  write_file(folder_ / "README.md", merged_model_card(config_, results));
  finish_model(folder_, {inputs_.base, inputs_.tokenizer, type, results, made_of});
  log::info("the model is in {}", folder_.string());
  log::info("try it: fettle generate --model_name_or_path={}{}", folder_.string(), prompt_arguments(config_.data));
  return results;
}

}  // namespace

nlohmann::ordered_json merge(const config::Config& config, at::Device device) {
  return Merging(config, device).run();
}

}  // namespace fettle::train
