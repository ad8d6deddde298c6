// SPDX-License-Identifier: Apache-2.0
#include "model/generate.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/multinomial.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "model/kv_cache.h"

namespace fettle::model {
namespace {

constexpr double kRemoved = -std::numeric_limits<double>::infinity();

// Logits of tokens that have occurred, in the prompt or since, are pushed down: CTRL's rule (arXiv 1909.05858).
void penalize_repetition(at::Tensor& logits, const std::vector<int32_t>& tokens, double penalty) {
  std::vector<int64_t> seen(tokens.begin(), tokens.end());
  std::ranges::sort(seen);
  seen.erase(std::ranges::unique(seen).begin(), seen.end());
  auto* values = logits.mutable_data_ptr<float>();
  for (const int64_t token : seen) {
    values[token] =
        values[token] < 0 ? values[token] * static_cast<float>(penalty) : values[token] / static_cast<float>(penalty);
  }
}

void keep_top_k(at::Tensor& logits, int64_t k) {
  const at::Tensor least = std::get<0>(logits.topk(std::min(k, logits.size(0))))[-1];
  logits.masked_fill_(logits < least, kRemoved);
}

// The smallest set of most likely tokens whose probabilities reach `p`; at least one.
void keep_top_p(at::Tensor& logits, double p) {
  const auto [sorted, order] = logits.sort(/*dim=*/0, /*descending=*/false);
  const at::Tensor below = sorted.softmax(0).cumsum(0);
  at::Tensor removed = below <= 1 - p;
  removed.narrow(0, removed.size(0) - 1, 1).fill_(false);
  logits.masked_fill_(removed.new_zeros(removed.sizes()).scatter_(0, order, removed), kRemoved);
}

class Sampler {
 public:
  Sampler(const config::GenerationConfig& options, uint64_t seed)
      : options_(options), generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {}

  /// `logits` float32 [V], changed; `tokens` all before.
  int32_t next(at::Tensor logits, const std::vector<int32_t>& tokens) {
    if (options_.repetition_penalty != 1.0) {
      penalize_repetition(logits, tokens, options_.repetition_penalty);
    }
    if (!options_.do_sample) {
      return static_cast<int32_t>(logits.argmax().item<int64_t>());
    }
    if (options_.temperature != 1.0) {
      logits.div_(options_.temperature);
    }
    if (options_.top_k > 0) {
      keep_top_k(logits, options_.top_k);
    }
    if (options_.top_p < 1.0) {
      keep_top_p(logits, options_.top_p);
    }
    return static_cast<int32_t>(
        at::multinomial(logits.softmax(0), 1, /*replacement=*/false, generator_).item<int64_t>());
  }

 private:
  const config::GenerationConfig& options_;
  at::Generator generator_;
};

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
                              const config::GenerationConfig& generation, const StopTokens& stop, uint64_t seed,
                              const TokenCallback& on_token) {
  check_prompt(prompt, decoder.spec().vocab_size);
  const at::NoGradGuard no_gradients;
  const auto capacity = static_cast<int64_t>(prompt.size()) + generation.max_new_tokens;
  KvCache cache(decoder.spec(), capacity, decoder.dtype());
  Sampler sampler(generation, seed);
  std::vector<int32_t> tokens = prompt;
  while (std::ssize(tokens) < capacity) {
    const at::Tensor hidden = decoder.hidden_states(continuation(tokens, cache.length()), &cache);
    const at::Tensor logits = decoder.logits(hidden.narrow(0, hidden.size(0) - 1, 1)).select(0, 0);
    const int32_t next = sampler.next(logits.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true), tokens);
    if (std::ranges::find(stop.ids, next) != stop.ids.end()) {
      break;
    }
    tokens.push_back(next);
    if (on_token && !on_token(next)) {
      break;
    }
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt.size()), tokens.end()};
}

}  // namespace fettle::model
