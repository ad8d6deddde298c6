// SPDX-License-Identifier: Apache-2.0
#include "model/generate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/text_stream.h"
#include "data/generation.h"
#include "device/device.h"
#include "model/kv_cache.h"
#include "train/inputs.h"

namespace fettle::cli {
namespace {

/// What ends an answer: as in transformers generation_config's eos_token_id (a number or a list), else config.json's.
/// The tokenizer's EOS too after a template: Fettle's training ends an answer with it, whatever the base's
/// generation_config says, which is then one of its pre-training. And where nothing else is configured.
std::vector<int32_t> stop_tokens(const train::ModelInputs& inputs, bool raw_prompt) {
  std::set<int32_t> ids;
  const nlohmann::json& configured = inputs.base.generation_config.value("eos_token_id", nlohmann::json());
  if (configured.is_number_integer()) ids.insert(configured.get<int32_t>());
  if (configured.is_array()) {
    for (const nlohmann::json& id : configured) {
      if (id.is_number_integer()) ids.insert(id.get<int32_t>());
    }
  }
  if (ids.empty()) ids.insert(inputs.spec.eos_ids.begin(), inputs.spec.eos_ids.end());
  if (inputs.tokenizer.eos_id() && (!raw_prompt || ids.empty())) ids.insert(*inputs.tokenizer.eos_id());
  return {ids.begin(), ids.end()};
}

/// Refuses a length whose keys and values no memory holds; warns of one that the model was not made for.
void check_length(const model::Decoder& model, size_t prompt, int64_t max_new_tokens) {
  const int64_t length = static_cast<int64_t>(prompt) + max_new_tokens;
  const double needed = model::KvCache::bytes(model.spec(), length, model.dtype());
  const auto memory = static_cast<double>(device::memory_capacity_bytes(model.device()));
  if (memory > 0 && needed > memory) {
    throw Error(ExitCode::kOutOfMemory,
                fmt::format("{} tokens of prompt and answer need {:.1f} GB for keys and values; there are {:.1f}",
                            length, needed / 1e9, memory / 1e9),
                "give a smaller max_new_tokens");
  }
  if (length > model.spec().max_positions) {
    log::warning("the prompt's {} tokens and max_new_tokens {} exceed the {} positions that the model was made for",
                 prompt, max_new_tokens, model.spec().max_positions);
  }
}

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

bool print_now(const std::string& text) {
  fmt::print("{}", text);
  return std::fflush(stdout) == 0;
}

}  // namespace

int generate(const Arguments& arguments) {
  auto config = read_options(arguments, config::Command::kGenerate);
  if (!config) return 0;
  const device::Device device = train::start_device(config->device);
  if (config->generation.prompt == "-") config->generation.prompt = standard_input();
  const train::ModelInputs inputs = train::load_inputs(config->model);
  const std::vector<int32_t> prompt = data::generation_prompt(config->generation, config->data, inputs.tokenizer);
  const model::Decoder model =
      train::load_model(inputs, config->model, {train::compute_type(config->training), device.torch_device});
  check_length(model, prompt.size(), config->generation.max_new_tokens);
  TextStream text(inputs.tokenizer);
  model::generate(model, prompt, config->generation, static_cast<uint64_t>(config->training.seed),
                  {stop_tokens(inputs, config->generation.raw_prompt),
                   [&text](int32_t token) { return print_now(text.add(token)); }});
  print_now(text.finish() + '\n');  // run() tells what became of it
  return 0;
}

}  // namespace fettle::cli
