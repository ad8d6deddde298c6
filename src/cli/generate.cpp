// SPDX-License-Identifier: Apache-2.0
#include "model/generate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "cli/answer.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/outputs.h"
#include "data/generation.h"
#include "data/prompts.h"
#include "device/device.h"
#include "model/kv_cache.h"
#include "train/inputs.h"

namespace fettle::cli {
namespace {

using Tokens = std::vector<int32_t>;

/// The prompt that is piped in. The limit is far above any model's context.
std::string standard_input() {
  constexpr size_t kLargest = 64'000'000;
  std::string text;
  std::array<char, 65536> piece{};
  for (;;) {
    const ssize_t size = ::read(STDIN_FILENO, piece.data(), piece.size());
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) {
      throw Error(ExitCode::kIo, system_error("cannot read the prompt from standard input", errno).what(),
                  "pipe a text into the command");
    }
    if (size == 0) break;
    text.append(piece.data(), static_cast<size_t>(size));
    if (text.size() > kLargest) {
      throw Error(ExitCode::kData, "the prompt on standard input has more than 64 MB", "give a shorter text");
    }
  }
  if (text.empty())
    throw Error(ExitCode::kData, "the prompt on standard input is empty", "pipe a text into the command");
  return text;
}

/// Refuses an output that would destroy something, or cannot be written, before any work is done.
void check_output(const config::Config& config) {
  const std::filesystem::path output = config.preprocess.output;
  std::error_code failure;
  require_not_read(config, "output", output);
  if (std::filesystem::is_regular_file(output, failure) && !config.preprocess.overwrite_output) {
    throw Error(ExitCode::kConfig, fmt::format("output: {} is there already", output.string()),
                "name another file, or set overwrite_output to replace it");
  }
  AtomicFile probe(output);  // leaves nothing behind
}

void answer_one(const config::Config& config, const train::ModelInputs& inputs, const train::ComputeOptions& compute) {
  const Tokens prompt = data::generation_prompt(config.generation, config.data, inputs.tokenizer);
  const model::Decoder model = train::load_model(inputs, config.model, compute);
  check_length(model, prompt.size(), config.generation.max_new_tokens);
  AnswerText text(inputs.tokenizer, config.generation.stop_strings);
  model::generate(model, prompt, config.generation, static_cast<uint64_t>(config.training.seed),
                  {stop_tokens(inputs, config.generation),
                   [&text](int32_t token) { return print_now(text.add(token)) && !text.has_ended(); }});
  print_now(text.finish() + '\n');  // run() tells what became of it
}

/// The prompts that are answered together from `first` on: at most 8, fewer where their keys and values would take more
/// than a quarter of the memory, or all prompts together are long.
size_t group_size(const model::Decoder& model, const std::vector<const Tokens*>& prompts, size_t first,
                  int64_t max_new_tokens) {
  constexpr size_t kMost = 8;
  constexpr size_t kMostTokens = 16384;
  const auto memory = static_cast<double>(device::memory_capacity_bytes(model.device()));
  size_t size = 1;
  for (size_t tokens = prompts[first]->size(); size < kMost && first + size < prompts.size(); ++size) {
    const Tokens& next = *prompts[first + size];
    tokens += next.size();
    const auto capacity = static_cast<int64_t>(next.size()) + max_new_tokens;  // the longest: they ascend
    const double needed = static_cast<double>(size + 1) * model::KvCache::bytes(model.spec(), capacity, model.dtype());
    if (tokens > kMostTokens || (memory > 0 && needed > memory / 4)) break;
  }
  return size;
}

class Progress {
 public:
  explicit Progress(size_t total) : total_(total) {}
  void report(size_t done) {
    constexpr auto kPause = std::chrono::seconds(10);
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < kPause) return;
    last_ = now;
    log::info("{} of {} answers", done, total_);
  }

 private:
  size_t total_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/// The answers' texts, in the order of the prompts. Prompts of about the same length are answered together: none waits
/// for a much longer one.
std::vector<std::string> answers(const model::Decoder& model, const train::ModelInputs& inputs,
                                 const config::Config& config, const std::vector<Tokens>& prompts) {
  std::vector<size_t> order(prompts.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&prompts](size_t i) { return prompts[i].size(); });
  std::vector<const Tokens*> sorted;
  for (const size_t i : order) sorted.push_back(&prompts[i]);
  check_length(model, sorted.back()->size(), config.generation.max_new_tokens);
  const std::vector<int32_t> ends = stop_tokens(inputs, config.generation);
  std::vector<std::string> texts(prompts.size());
  Progress progress(prompts.size());
  for (size_t first = 0; first < order.size();) {
    const size_t size = group_size(model, sorted, first, config.generation.max_new_tokens);
    std::vector<std::unique_ptr<AnswerText>> streams;
    std::vector<model::Request> requests;
    for (size_t i = first; i < first + size; ++i) {
      AnswerText& stream =
          *streams.emplace_back(std::make_unique<AnswerText>(inputs.tokenizer, config.generation.stop_strings));
      const auto on_token = [&stream](int32_t token) {
        stream.add(token);
        return !stream.has_ended();
      };
      requests.push_back({*sorted[i], seed_of(config.training.seed, order[i]), {ends, on_token}});
    }
    model::generate(model, requests, config.generation);
    for (size_t i = 0; i < size; ++i) {
      streams[i]->finish();
      texts[order[first + i]] = streams[i]->text();
    }
    first += size;
    progress.report(first);
  }
  return texts;
}

void answer_file(const config::Config& config, const train::ModelInputs& inputs, const train::ComputeOptions& compute) {
  check_output(config);
  const std::vector<std::string> prompts = data::read_prompts(config.generation.prompts_file);
  const std::vector<Tokens> tokens =
      data::generation_prompts(config.generation, config.data, inputs.tokenizer, prompts);
  const model::Decoder model = train::load_model(inputs, config.model, compute);
  const std::vector<std::string> texts = answers(model, inputs, config, tokens);
  AtomicFile file(config.preprocess.output);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const nlohmann::ordered_json line = {{"prompt", prompts[i]}, {"answer", texts[i]}};
    file.write(line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n');
  }
  file.commit();
  log::info("{} answers written to {}", prompts.size(), config.preprocess.output);
}

}  // namespace

int generate(const Arguments& arguments) {
  auto config = read_options(arguments, config::Command::kGenerate);
  if (!config) return 0;
  const device::Device device = train::start_device(config->device);
  if (config->generation.prompt == "-") config->generation.prompt = standard_input();
  const train::ModelInputs inputs = train::load_inputs(config->model);
  const train::ComputeOptions compute = {train::compute_type(config->training), device.torch_device};
  if (config->generation.prompts_file.empty()) {
    answer_one(*config, inputs, compute);
  } else {
    answer_file(*config, inputs, compute);
  }
  return 0;
}

}  // namespace fettle::cli
