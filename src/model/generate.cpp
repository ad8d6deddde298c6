// SPDX-License-Identifier: Apache-2.0
#include "model/generate.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "model/kv_cache.h"
#include "model/sampling.h"
#include "ops/to_device.h"

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

/// All tokens so far, filled up to a length that changes rarely.
Batch filled_row(const std::vector<int32_t>& tokens) {
  constexpr int64_t kStep = 128;
  const auto count = static_cast<int64_t>(tokens.size());
  Batch batch;
  batch.row_length = (count + kStep - 1) / kStep * kStep;
  batch.one_document_a_row = true;
  batch.tokens = at::zeros({batch.row_length}, at::kLong);
  std::copy(tokens.begin(), tokens.end(), batch.tokens.mutable_data_ptr<int64_t>());
  batch.positions = at::arange(batch.row_length, at::kLong);
  batch.cu_seqlens = {0, static_cast<int32_t>(batch.row_length)};
  return batch;
}

/// float32 [V] on the host: what the model says of the token after the last. With a cache, it computes what is new.
at::Tensor next_logits(const Decoder& decoder, const std::vector<int32_t>& tokens, std::optional<KvCache>& cache) {
  at::Tensor last;
  if (cache) {
    const at::Tensor hidden = decoder.hidden_states(continuation(tokens, cache->length()), &*cache);
    last = hidden.narrow(0, hidden.size(0) - 1, 1);
  } else {
    const at::Tensor place = at::full({1}, static_cast<int64_t>(tokens.size()) - 1, at::kLong);
    last = decoder.hidden_states(filled_row(tokens)).index_select(0, ops::to_device(place, decoder.device()));
  }
  return decoder.logits(last).select(0, 0).to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
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
  std::optional<KvCache> cache;
  if (decoder.caches_keys()) {
    cache.emplace(decoder.spec(), capacity, at::dtype(decoder.dtype()).device(decoder.device()));
  }
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  std::vector<int32_t> tokens = prompt;
  while (std::ssize(tokens) < capacity) {
    const int32_t next = next_token(next_logits(decoder, tokens, cache), tokens, generation, generator);
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
