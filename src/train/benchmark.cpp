// SPDX-License-Identifier: Apache-2.0
#include "train/benchmark.h"

#include <fmt/format.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>
#include <string>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "config/describe.h"
#include "config/option_table.h"
#include "config/value.h"
#include "device/device.h"
#include "model/generate.h"
#include "train/inputs.h"
#include "train/instances.h"

namespace fettle::train {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

std::vector<int32_t> random_prompt(std::mt19937_64& random, int64_t tokens, int64_t vocabulary) {
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(vocabulary - 1));
  std::vector<int32_t> prompt(static_cast<size_t>(tokens));
  std::ranges::generate(prompt, [&] { return any(random); });
  return prompt;
}

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

/// Tokens a second: of prompts, of answers after their first token, and of whole answers.
Json rates(const Samples& samples, const config::BenchmarkConfig& options) {
  const auto batch = static_cast<double>(options.benchmark_batch_size);
  const auto prompts = static_cast<double>(samples.prefill.size()) * batch;
  const double prefill = sum(samples.prefill);
  const double decode = sum(samples.decode);
  return {{"prefill_tokens_per_second", prompts * static_cast<double>(options.benchmark_input_tokens) / prefill},
          {"decode_tokens_per_second", static_cast<double>(samples.decode.size()) * batch / decode},
          {"tokens_per_second", prompts * static_cast<double>(options.benchmark_output_tokens) / (prefill + decode)}};
}

/// What an instance is started with: this configuration's options, but for those that the instances together have.
std::vector<std::string> instance_arguments(const config::Config& config) {
  std::vector<std::string> arguments = {"benchmark", "--log_level=warning"};
  const Json values = config::to_json(config);
  for (const config::Section& section : config::sections()) {
    for (const config::Option& option : section.options) {
      const bool is_of_all = option.name == "benchmark_num_instances" || option.name == "benchmark_output" ||
                             option.name == "benchmark_cores_per_instance" || option.name == "log_level";
      if (is_of_all || !option.used_by(config::Command::kBenchmark) || config::is_default(option, config)) continue;
      const Json& value = values[std::string(option.name)];
      arguments.push_back(
          fmt::format("--{}={}", option.name, value.is_string() ? value.get<std::string>() : value.dump()));
    }
  }
  return arguments;
}

/// The figures of all instances: latencies of all runs, and the sums of rates and memory.
Json combine(const config::Config& config, std::vector<Json>& instances) {
  Samples all;
  Json totals = Json::object();
  for (Json& instance : instances) {
    for (const double value : instance["samples"]["prefill"]) all.prefill.push_back(value);
    for (const double value : instance["samples"]["decode"]) all.decode.push_back(value);
    instance.erase("samples");
    for (const char* name :
         {"prefill_tokens_per_second", "decode_tokens_per_second", "tokens_per_second", "peak_memory_bytes"}) {
      const Json& value = instance[name];
      if (!totals.contains(name))
        totals[name] = value;
      else if (value.is_number_integer())
        totals[name] = totals[name].get<int64_t>() + value.get<int64_t>();
      else
        totals[name] = totals[name].get<double>() + value.get<double>();
    }
  }
  const config::BenchmarkConfig& options = config.benchmark;
  Json figures = {{"model", config.model.model_name_or_path}};
  if (!config.model.adapter_name_or_path.empty()) figures["adapter"] = config.model.adapter_name_or_path;
  figures["machine"] = instances.front()["machine"];
  figures["machine"]["cores"] = device::usable_cores();
  figures["instances"] = options.benchmark_num_instances;
  figures["cores_per_instance"] = instances.front()["cores"];
  figures["batch_size"] = options.benchmark_batch_size;
  figures["input_tokens"] = options.benchmark_input_tokens;
  figures["output_tokens"] = options.benchmark_output_tokens;
  figures["warmup"] = options.benchmark_warmup;
  figures["iterations"] = options.benchmark_iterations;
  figures["model_bytes"] = instances.front()["model_bytes"];
  figures["prefill_latency_ms"] = percentiles(all.prefill);
  figures["decode_latency_ms"] = percentiles(all.decode);
  figures.update(totals);
  for (Json& instance : instances) instance.erase("machine");
  if (instances.size() > 1) figures["of_each_instance"] = instances;
  return figures;
}

void log_latency(const Json& figures, const char* key, const char* what) {
  const auto ms = [&](const char* name) { return figures[key][name].get<double>(); };
  log::info("{:<22}{:>10.3f}{:>10.3f}{:>10.3f}{:>10.3f}", what, ms("mean"), ms("p50"), ms("p90"), ms("p99"));
}

void log_table(const Json& figures) {
  const auto number = [&](const char* name) { return figures[name].get<double>(); };
  const auto count = [&](const char* name) { return figures[name].get<int64_t>(); };
  log::info("{} instances on {} cores each, {} sequences of {} + {} tokens together, {} runs", count("instances"),
            count("cores_per_instance"), count("batch_size"), count("input_tokens"), count("output_tokens"),
            count("iterations"));
  log::info("{:<22}{:>10}{:>10}{:>10}{:>10}", "milliseconds", "mean", "p50", "p90", "p99");
  log_latency(figures, "prefill_latency_ms", "to the first token");
  log_latency(figures, "decode_latency_ms", "each token after it");
  log::info("tokens a second: {:.1f} of answers; {:.1f} of prompts, {:.1f} after the first token",
            number("tokens_per_second"), number("prefill_tokens_per_second"), number("decode_tokens_per_second"));
  log::info("memory at the peak: {:.3f} GB, of which the weights of one instance {:.3f} GB",
            number("peak_memory_bytes") / 1e9, number("model_bytes") / 1e9);
}

/// The machine as the figures need it to be understood.
Json machine_facts(const device::Device& device, at::ScalarType type) {
  return {{"processor", device.processor.name},
          {"vector_instructions", device.processor.vector_instructions},
          {"bf16_instructions", device.processor.bf16_instructions},
          {"device", device.torch_device.str()},
          {"threads", device.threads},
          {"dtype", type == at::kBFloat16 ? "bfloat16" : "float32"},
          {"fettle", FETTLE_VERSION},
          {"libtorch", TORCH_VERSION}};
}

}  // namespace

Samples measure(const model::Decoder& model, const config::BenchmarkConfig& options, int64_t runs) {
  config::GenerationConfig generation;
  generation.max_new_tokens = options.benchmark_output_tokens;
  std::mt19937_64 random(42);  // NOLINT: the same prompts for all that is compared
  Samples samples;
  for (int64_t run = 0; run < runs; ++run) {
    std::vector<model::Request> requests;
    for (int64_t i = 0; i < options.benchmark_batch_size; ++i) {
      requests.push_back({random_prompt(random, options.benchmark_input_tokens, model.spec().vocab_size)});
    }
    Clock::time_point last;
    bool is_first = true;
    requests.back().stop.on_token = [&](int32_t) {  // a step's last sequence
      const auto now = Clock::now();
      (is_first ? samples.prefill : samples.decode).push_back(seconds_between(last, now));
      is_first = false;
      last = now;
      return true;
    };
    last = Clock::now();
    model::generate(model, requests, generation);
  }
  return samples;
}

Json percentiles(std::vector<double> seconds) {
  std::ranges::sort(seconds);
  const auto percentile = [&seconds](double percent) {
    const double place = percent / 100 * static_cast<double>(seconds.size() - 1);
    const double below = std::floor(place);
    const double first = seconds[static_cast<size_t>(below)];
    return 1e3 * (first + (place - below) * (seconds[static_cast<size_t>(std::ceil(place))] - first));
  };
  return {{"mean", 1e3 * sum(seconds) / static_cast<double>(seconds.size())},
          {"p50", percentile(50)},
          {"p90", percentile(90)},
          {"p99", percentile(99)}};
}

Json benchmark_instance(const config::Config& config) {
  const device::Device device = start_device(config.device);
  const ModelInputs inputs = load_inputs(config.model);
  const at::ScalarType type = compute_type(config.training);
  const model::Decoder model = load_model(inputs, config.model, {type, device.torch_device});
  if (!model.caches_keys() && config.benchmark.benchmark_batch_size > 1) {
    throw Error(ExitCode::kConfig,
                fmt::format("benchmark_batch_size: {} answers one prompt after the other", device.torch_device.str()),
                "set benchmark_batch_size: 1");
  }
  measure(model, config.benchmark, config.benchmark.benchmark_warmup);
  wait_for_all();
  const Samples samples = measure(model, config.benchmark, config.benchmark.benchmark_iterations);
  Json result = {{"cores", device::usable_cores()},
                 {"model_bytes", model.bytes()},
                 {"prefill_latency_ms", percentiles(samples.prefill)},
                 {"decode_latency_ms", percentiles(samples.decode)}};
  result.update(rates(samples, config.benchmark));
  result["peak_memory_bytes"] = device::peak_memory_bytes(device.torch_device);
  result["machine"] = machine_facts(device, type);
  result["samples"] = {{"prefill", samples.prefill}, {"decode", samples.decode}};
  return result;
}

BenchmarkOutcome benchmark(const config::Config& config) {
  const config::BenchmarkConfig& options = config.benchmark;
  const ModelInputs inputs = load_inputs(config.model);  // what is wrong with it is said once
  const int64_t length = options.benchmark_input_tokens + options.benchmark_output_tokens;
  if (length > inputs.spec.max_positions) {
    log::warning("{} tokens of prompt and answer exceed the {} positions that the model was made for", length,
                 inputs.spec.max_positions);
  }
  if (!options.benchmark_output.empty()) AtomicFile probe(options.benchmark_output);
  std::vector<std::vector<int>> cores = device::physical_cores();
  cores.resize(std::min(cores.size(), static_cast<size_t>(device::usable_cores())));  // a quota of CPU time
  const auto shares = share_cores(cores, options.benchmark_num_instances, options.benchmark_cores_per_instance);
  const InstanceResults results = run_instances(instance_arguments(config), shares);
  if (results.exit_code != 0) return {results.exit_code, {}};
  if (results.outputs.size() != shares.size()) {
    throw Error(ExitCode::kInternal, "an instance ended without having measured");
  }
  std::vector<Json> instances;
  for (const std::string& output : results.outputs) {
    instances.push_back(Json::parse(output, nullptr, /*allow_exceptions=*/false));
    if (!instances.back().is_object()) {
      throw Error(ExitCode::kInternal, "an instance printed no figures");
    }
  }
  Json figures = combine(config, instances);
  log_table(figures);
  if (!options.benchmark_output.empty()) write_file(options.benchmark_output, figures.dump(2) + '\n');
  return {0, std::move(figures)};
}

}  // namespace fettle::train
