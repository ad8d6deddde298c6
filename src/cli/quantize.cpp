// SPDX-License-Identifier: Apache-2.0
#include "cli/quantize.h"

#include <ATen/Context.h>
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/quantization_report.h"
#include "config/value.h"
#include "quantize/model_quantizer.h"
#include "train/evaluate.h"
#include "train/inputs.h"
#include "train/loop.h"
#include "train/made_model.h"
#include "train/model_card.h"
#include "train/output_folder.h"
#include "train/probe.h"
#include "train/ranks.h"
#include "train/save.h"
#include "train/tensor_file.h"
#include "train/training_inputs.h"

namespace fettle::cli {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kLayersFolder = ".layers";
constexpr const char* kMethod = "method";

/// Whether an input's group has to be stated for each: only GPTQ's files have a place for it.
bool states_groups(const config::QuantizationConfig& options) {
  return options.woq_algo == "GPTQ" && options.act_order && !options.static_groups && options.woq_group_size != -1;
}

hub::QuantizedLayout layout(const config::QuantizationConfig& options) {
  if (options.woq_format == "gptq") return hub::QuantizedLayout::kGptq;
  if (options.woq_format == "gptq_v2") return hub::QuantizedLayout::kGptqV2;
  if (options.woq_format == "awq") return hub::QuantizedLayout::kAwq;
  if (options.woq_format == "auto" && states_groups(options)) return hub::QuantizedLayout::kGptqV2;
  return hub::QuantizedLayout::kCompressedTensors;
}

hub::Quantization format_of(const config::QuantizationConfig& options) {
  return {.layout = layout(options),
          .bits = static_cast<int>(options.woq_bits),
          .group = options.woq_group_size,
          .symmetric = options.woq_scheme == "sym",
          .act_order = states_groups(options)};
}

/// The records that the layers are shown, and those that perplexity is measured on.
struct Records {
  std::optional<data::TokenDataset> calibration;
  std::optional<train::RecordsToTry> evaluation;
};

Records prepare_records(const config::Config& config, const train::ModelInputs& inputs) {
  Records records{.calibration = {}, .evaluation = train::records_to_try(config, inputs)};
  if (config.quantization.woq_algo == "RTN") return records;
  config::DataConfig short_rows = config.data;
  short_rows.max_seq_length = config.quantization.calibration_length;
  records.calibration = data::prepare(short_rows, inputs.tokenizer, true, config.model.cache_dir).train;
  train::require_vocabulary(inputs, *records.calibration);
  return records;
}

/// Micro-batches of calibration_samples rows in all; none without calibration.
std::vector<model::Batch> calibration_batches(const config::Config& config, const Records& all,
                                              const model::DecoderSpec& spec) {
  if (!all.calibration) return {};
  const data::TokenDataset& records = *all.calibration;
  constexpr int64_t kTokensABatch = 4096;
  const config::QuantizationConfig& options = config.quantization;
  const int64_t rows = std::max<int64_t>(1, kTokensABatch / options.calibration_length);
  const data::BatchOrder order(records,
                               {.max_seq_length = options.calibration_length,
                                .packing = true,
                                .shuffle = true,
                                .seed = config.training.seed,
                                .batch_size = rows},
                               0);
  std::vector<model::Batch> batches;
  int64_t tokens = 0;
  for (int64_t i = 0; i < order.batches() && i * rows < options.calibration_samples; ++i) {
    batches.push_back(train::to_tensors(order.batch(i)));
    tokens += batches.back().tokens.size(0);
  }
  log::info("calibration on {} rows, {} tokens", std::min(order.rows(), options.calibration_samples), tokens);
  if (tokens < spec.hidden_size) {
    throw Error(ExitCode::kData,
                fmt::format("the calibration records have {} tokens; {} looks at matrices of {} inputs", tokens,
                            options.woq_algo, spec.hidden_size),
                "give more training records, or use woq_algo: RTN");
  }
  if (order.rows() < options.calibration_samples) {
    log::warning("there are only {} rows of {} tokens for calibration_samples {}", order.rows(),
                 options.calibration_length, options.calibration_samples);
  }
  return batches;
}

std::optional<train::Evaluation> evaluate_records(const config::Config& config, const Records& records,
                                                  const model::Decoder& model, at::Device device) {
  constexpr int64_t kMostBatches = 64;  // of training records, where there are no others
  if (!records.evaluation) return std::nullopt;
  const auto& [dataset, are_for_training] = *records.evaluation;
  const data::OrderOptions order = train::evaluation_order(config, dataset, device);
  return are_for_training ? train::evaluate(model, dataset, order, kMostBatches)
                          : train::evaluate(model, dataset, order);
}

/// The options that decide the layers' codes.
Json method_of(const config::Config& config) {
  const config::QuantizationConfig& options = config.quantization;
  Json method = {{"algorithm", options.woq_algo},
                 {"format", hub::quantization_config(format_of(options))},
                 {"bf16", config.training.bf16}};
  if (options.woq_algo == "RTN") return method;
  method["calibration"] = {
      {"samples", options.calibration_samples}, {"length", options.calibration_length}, {"seed", config.training.seed}};
  if (options.woq_algo == "GPTQ") {
    method["options"] = {{"act_order", options.act_order},
                         {"static_groups", options.static_groups},
                         {"gptq_clip", options.gptq_clip},
                         {"damp_percent", options.damp_percent}};
  } else if (options.woq_algo == "AWQ") {
    method["options"] = {{"awq_clip", options.awq_clip}, {"awq_grid_size", options.awq_grid_size}};
  } else {
    method["options"] = {{"teq_steps", options.teq_steps}, {"teq_learning_rate", options.teq_learning_rate}};
  }
  return method;
}

/// What decides the layers' codes.
std::string identity(const config::Config& config, const train::ModelInputs& inputs, const Records& records) {
  Json facts = {{"weights", train::weights_fingerprint(inputs.base.open_weights())}, {kMethod, method_of(config)}};
  if (records.calibration) facts["records"] = records.calibration->fingerprint();
  return sha256(facts.dump());
}

/// What decides all files: the codes, what is beside them, and the perplexity that is reported with them.
std::string identity_of_result(const std::string& of_layers, const config::Config& config,
                               const train::ModelInputs& inputs, const Records& records) {
  return sha256(of_layers + train::description_fingerprint(inputs.base, inputs.tokenizer) +
                config.output.max_shard_size + (records.evaluation ? records.evaluation->records.fingerprint() : ""));
}

double seconds_since(std::chrono::steady_clock::time_point time) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - time).count();
}

int64_t bytes_of(const hub::TensorSource& source) {
  int64_t bytes = 0;
  for (const hub::TensorView& view : source.tensors()) bytes += static_cast<int64_t>(view.bytes.size());
  return bytes;
}

}  // namespace

void require_quantizable(const config::Config& config, const model::DecoderSpec& spec) {
  if (spec.quantization) {
    throw Error(ExitCode::kConfig, config.model.model_name_or_path + " is quantized already",
                "give the model that it was made from");
  }
  quantize::require_fitting(spec, format_of(config.quantization));
}

bool is_made_otherwise(const fs::path& folder, const config::Config& config) {
  const std::optional<Json> made = train::results_of_model(folder);
  return made && made->value(kMethod, Json()) != method_of(config);
}

Json quantize_model(const config::Config& config, const device::Device& device) {
  const auto began = std::chrono::steady_clock::now();
  const fs::path folder = config.output.output_dir;
  const config::ModelConfig& read = config.model;
  train::require_place_for_model(folder, {read.model_name_or_path, read.tokenizer_name, read.config_name});
  const train::ModelInputs inputs = train::load_inputs(config.model);
  require_quantizable(config, inputs.spec);
  const hub::Quantization format = format_of(config.quantization);
  const train::FolderLock lock(folder);
  const auto source = std::make_shared<const hub::TensorSource>(inputs.base.open_weights());
  const quantize::Method method{config.quantization, format, train::file_type(train::stored_type(*source))};
  const Records records = prepare_records(config, inputs);
  const std::string of_layers = identity(config, inputs, records);
  const std::string of_result = identity_of_result(of_layers, config, inputs, records);
  if (const auto earlier = train::made_earlier(folder, of_result)) {
    log::info("{} is that model already", folder.string());
    require_perplexity(config.quantization, *earlier);
    return *earlier;
  }
  train::require_free(folder, config.output.overwrite_output_dir);
  std::vector<model::Batch> batches = calibration_batches(config, records, inputs.spec);
  const at::ScalarType type = train::compute_type(config.training);
  const auto before =
      evaluate_records(config, records, train::load_model(inputs, config.model, {type, device.torch_device}),
                       device.torch_device);  // and the model is gone again
  const quantize::Job job{inputs.spec, source, type, device.torch_device, folder / kLayersFolder, of_layers};
  const auto began_layers = std::chrono::steady_clock::now();
  quantize::quantize_layers(job, method, std::move(batches));
  const double layers_seconds = seconds_since(began_layers);

  const auto max_shard_size = static_cast<uint64_t>(config::parse_bytes(config.output.max_shard_size).value());
  hub::ModelFolder described = inputs.base;
  described.config["quantization_config"] = hub::quantization_config(format);
  train::begin_model(folder);
  quantize::write_quantized_weights(folder, job, method, max_shard_size);

  const auto written = hub::TensorSource::open_safetensors(folder);
  const auto spec = model::DecoderSpec::from_config(described.config);
  const auto load = [&](at::ScalarType compute_type, at::Device on) {
    return model::Decoder::load(spec, written, compute_type, {.device = on});
  };
  QuantizationOutcome outcome{
      .before = before,
      .after = evaluate_records(config, records, load(type, device.torch_device), device.torch_device),
      .on_training_records = records.evaluation && records.evaluation->are_for_training,
      .bytes_before = bytes_of(*source),
      .bytes_after = bytes_of(written),
      .layers_seconds = layers_seconds};
  train::write_probe(folder, train::make_probe(load(at::kFloat, at::kCPU), inputs.tokenizer));
  outcome.seconds = seconds_since(began);
  Json results = quantization_results(config.quantization, outcome);
  results[kMethod] = method_of(config);
  write_file(folder / "README.md", train::quantized_model_card(config, results));
  fs::remove_all(folder / kLayersFolder);
  train::finish_model(folder, {described, inputs.tokenizer, train::stored_type(*source), results, of_result});
  log_quantization(folder.string(), outcome);
  require_perplexity(config.quantization, results);
  log::info("try it: fettle generate --model_name_or_path={}{}", folder.string(), train::prompt_arguments(config.data));
  return results;
}

int quantize(const Arguments& arguments) {
  const auto config = read_options(arguments, config::Command::kQuantize);
  if (!config) return 0;
  const device::Device device = train::start_device(config->device);
  log::info("{}", device.description());
  fmt::print("{}\n", quantize_model(*config, device).dump());
  return 0;
}

}  // namespace fettle::cli
