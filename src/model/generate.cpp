// SPDX-License-Identifier: Apache-2.0
#include "model/generate.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "model/kv_cache.h"
#include "model/sampling.h"

namespace fettle::model {
namespace {

Batch continuation(const std::vector<int32_t>& tokens, int64_t from) {
  const auto count = static_cast<int64_t>(tokens.size()) - from;
  Batch batch;
  batch.tokens = at::empty({count}, at::kLong);
  std::copy(tokens.begin() + from, tokens.end(), batch.tokens.mutable_data_ptr<int64_t>());
  batch.positions = at::arange(from, from + count, at::kLong);
  batch.cu_seqlens = {0, static_cast<int32_t>(count)};
  return batch;
}

void check_prompt(const std::vector<int32_t>& prompt, int64_t vocabulary) {
  if (prompt.empty()) {
    throw Error(ExitCode::kData, "the prompt has no tokens", "give a text to continue");
  }
  for (const int32_t token : prompt) {
    if (token < 0 || token >= vocabulary) {
      throw Error(ExitCode::kData,
                  fmt::format("token {} of the prompt is outside the model's vocabulary of {}", token, vocabulary),
                  "the tokenizer belongs to another model");
    }
  }
}

}  // namespace

std::vector<int32_t> generate(const Decoder& decoder, const std::vector<int32_t>& prompt,
                              const config::GenerationConfig& generation, uint64_t seed, const Stop& stop) {
  check_prompt(prompt, decoder.spec().vocab_size);
  const at::NoGradGuard no_gradients;
  const auto capacity = static_cast<int64_t>(prompt.size()) + generation.max_new_tokens;
  KvCache cache(decoder.spec(), capacity, at::dtype(decoder.dtype()).device(decoder.device()));
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  std::vector<int32_t> tokens = prompt;
  while (std::ssize(tokens) < capacity) {
    const at::Tensor hidden = decoder.hidden_states(continuation(tokens, cache.length()), &cache);
    const at::Tensor logits = decoder.logits(hidden.narrow(0, hidden.size(0) - 1, 1)).select(0, 0);
    const int32_t next = next_token(logits.to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true), tokens,
                                    generation, generator);
    if (std::ranges::find(stop.tokens, next) != stop.tokens.end()) {
      break;
    }
    tokens.push_back(next);
    if (stop.on_token && !stop.on_token(next)) {
      break;
    }
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt.size()), tokens.end()};
}

}  // namespace fettle::model
