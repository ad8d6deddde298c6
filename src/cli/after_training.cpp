// SPDX-License-Identifier: Apache-2.0
#include "cli/after_training.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "cli/quantize.h"
#include "hub/model_folder.h"
#include "model/spec.h"
#include "train/benchmark.h"
#include "train/inputs.h"
#include "train/made_model.h"
#include "train/merge.h"

namespace fettle::cli {
namespace fs = std::filesystem;
namespace {

/// The options for work on a result of the training alone.
config::Config on_model(const config::Config& config, const fs::path& model) {
  config::Config other = config;
  other.model = {};
  other.model.cache_dir = config.model.cache_dir;
  other.model.model_name_or_path = model.string();
  other.output.overwrite_output_dir = false;
  return other;
}

/// The trained model as an ordinary one.
fs::path whole_model(const config::Config& config, const device::Device& device) {
  const fs::path output = config.output.output_dir;
  if (!config.lora.use_peft) return output;
  const fs::path merged = output / "merged";
  config::Config merging = config;
  merging.model.adapter_name_or_path = output.string();
  merging.model.load_in_4bit = merging.model.load_in_8bit = merging.model.load_in_fp8 = false;
  merging.output.output_dir = merged.string();
  merging.output.overwrite_output_dir = true;  // a merge of what the training was before it went on
  train::merge(merging, device.torch_device);
  return merged;
}

fs::path quantized_folder(const config::Config& config) {
  const std::string& given = config.quantization.quantize_output_dir;
  return given.empty() ? fs::path(config.output.output_dir) / "quantized" : fs::path(given);
}

fs::path benchmark_file(const config::Config& config) {
  const std::string& given = config.benchmark.benchmark_output;
  return given.empty() ? fs::path(config.output.output_dir) / "benchmark.json" : fs::path(given);
}

void quantize_result(const config::Config& config) {
  const device::Device device = train::start_device(config.device);
  config::Config quantizing = on_model(config, whole_model(config, device));
  const bool is_own_folder = config.quantization.quantize_output_dir.empty();
  quantizing.output.output_dir = quantized_folder(config).string();
  quantizing.output.overwrite_output_dir = is_own_folder || config.output.overwrite_output_dir;
  quantize_model(quantizing, device);
}

int benchmark_result(const config::Config& config) {
  const fs::path output = config.output.output_dir;
  nlohmann::ordered_json figures;
  const auto add = [&figures](const char* name, config::Config measured) {
    measured.benchmark.benchmark_output.clear();
    train::BenchmarkOutcome outcome = train::benchmark(measured);
    figures[name] = std::move(outcome.figures);
    return outcome.exit_code;
  };
  config::Config trained = config;
  if (config.lora.use_peft) {
    trained.model.adapter_name_or_path = output.string();
  } else {
    trained = on_model(config, output);
  }
  if (const int code = add("trained", std::move(trained)); code != 0) return code;
  if (config.quantization.do_quantize) {
    if (const int code = add("quantized", on_model(config, quantized_folder(config))); code != 0) return code;
  }
  write_file(benchmark_file(config), figures.dump(2) + '\n');
  return 0;
}

}  // namespace

void check_after_training(const config::Config& config) {
  if (!config.quantization.do_quantize) return;
  const hub::ModelFolder base = hub::resolve_model(config.model);
  require_quantizable(config, model::DecoderSpec::from_config(base.config));
  if (config.output.overwrite_output_dir) return;
  const fs::path folder = quantized_folder(config);
  if (is_made_otherwise(folder, config)) {
    throw Error(ExitCode::kConfig, folder.string() + " holds a model that was quantized with other options",
                "set quantize_output_dir for another one, or remove that");
  }
  if (train::results_of_model(folder)) return;  // made anew if its weights are other ones
  train::require_place_for_model(folder, {config.model.model_name_or_path, config.model.tokenizer_name});
  train::require_free(folder, /*overwrite=*/false);
}

int after_training(const config::Config& config) {
  std::error_code ignored;  // what cannot be removed cannot be written, which says why
  if (config.benchmark.do_benchmark) fs::remove(benchmark_file(config), ignored);  // of what may be other weights now
  if (config.quantization.do_quantize) quantize_result(config);
  return config.benchmark.do_benchmark ? benchmark_result(config) : 0;
}

}  // namespace fettle::cli
