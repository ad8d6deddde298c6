// SPDX-License-Identifier: Apache-2.0
#include "model/generate.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
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

/// A text while it is continued.
struct Sequence {
  const Request* request;
  std::vector<int32_t> tokens;  // prompt and answer
  at::Generator generator;
};

/// The tokens of each sequence that its document in the cache does not have.
Batch continuation(const std::vector<Sequence*>& sequences, const KvCache& cache) {
  std::vector<int64_t> tokens;
  std::vector<at::Tensor> positions;
  Batch batch;
  batch.cu_seqlens = {0};
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<int32_t>& all = sequences[i]->tokens;
    const int64_t cached = cache.length(static_cast<int64_t>(i));
    tokens.insert(tokens.end(), all.begin() + cached, all.end());
    positions.push_back(at::arange(cached, std::ssize(all), at::kLong));
    batch.cu_seqlens.push_back(static_cast<int32_t>(tokens.size()));
  }
  batch.tokens = at::tensor(tokens, at::kLong);
  batch.positions = at::cat(positions);
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

/// float32 [sequences, V] on the host: what the model says of the token after the last of each. With a cache, it
/// computes what is new; without, there is one sequence.
at::Tensor next_logits(const Decoder& decoder, const std::vector<Sequence*>& sequences, std::optional<KvCache>& cache) {
  at::Tensor hidden;
  std::vector<int64_t> last;
  if (cache) {
    const Batch batch = continuation(sequences, *cache);
    hidden = decoder.hidden_states(batch, &*cache);
    for (size_t i = 0; i < sequences.size(); ++i) last.push_back(batch.cu_seqlens[i + 1] - 1);
  } else {
    hidden = decoder.hidden_states(filled_row(sequences.front()->tokens));
    last.push_back(std::ssize(sequences.front()->tokens) - 1);
  }
  const at::Tensor rows = hidden.index_select(0, ops::to_device(at::tensor(last, at::kLong), decoder.device()));
  return decoder.logits(rows).to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
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

/// Adds a token; false where the answer has ended.
bool extend(Sequence& sequence, const at::Tensor& logits, const config::GenerationConfig& generation) {
  const Stop& stop = sequence.request->stop;
  const int32_t next = next_token(logits, sequence.tokens, generation, sequence.generator);
  if (std::ranges::find(stop.tokens, next) != stop.tokens.end()) return false;
  sequence.tokens.push_back(next);
  if (stop.on_token && !stop.on_token(next)) return false;
  return std::ssize(sequence.tokens) < std::ssize(sequence.request->prompt) + generation.max_new_tokens;
}

/// Until all have ended. `cache` holds the beginning of each, or there is none.
void run(const Decoder& decoder, std::vector<Sequence>& sequences, const config::GenerationConfig& generation,
         std::optional<KvCache>& cache) {
  const at::NoGradGuard no_gradients;
  std::vector<Sequence*> running;
  for (Sequence& sequence : sequences) running.push_back(&sequence);
  while (!running.empty()) {
    const at::Tensor logits = next_logits(decoder, running, cache);
    std::vector<Sequence*> going_on;
    std::vector<int64_t> documents;
    for (size_t i = 0; i < running.size(); ++i) {
      const auto row = static_cast<int64_t>(i);
      if (!extend(*running[i], logits.select(0, row), generation)) continue;
      going_on.push_back(running[i]);
      documents.push_back(row);
    }
    if (cache && !going_on.empty() && going_on.size() < running.size()) cache->retain(documents);
    running = std::move(going_on);
  }
}

std::vector<int32_t> answer(const Sequence& sequence) {
  return {sequence.tokens.begin() + std::ssize(sequence.request->prompt), sequence.tokens.end()};
}

Sequence begin(const Request& request, const Decoder& decoder) {
  check_prompt(request.prompt, decoder.spec().vocab_size);
  return {&request, request.prompt, at::make_generator<at::CPUGeneratorImpl>(request.seed)};
}

at::TensorOptions cache_options(const Decoder& decoder) {
  return at::dtype(decoder.dtype()).device(decoder.device());
}

}  // namespace

std::vector<int32_t> generate(const Decoder& decoder, const std::vector<int32_t>& prompt,
                              const config::GenerationConfig& generation, uint64_t seed, const Stop& stop) {
  return generate(decoder, {Request{prompt, seed, stop}}, generation).front();
}

std::vector<std::vector<int32_t>> generate(const Decoder& decoder, const std::vector<Request>& requests,
                                           const config::GenerationConfig& generation) {
  std::vector<Sequence> sequences;
  int64_t longest = 0;
  for (const Request& request : requests) {
    sequences.push_back(begin(request, decoder));
    longest = std::max(longest, std::ssize(request.prompt));
  }
  std::optional<KvCache> cache;
  if (decoder.caches_keys()) {
    cache.emplace(decoder.spec(), longest + generation.max_new_tokens, cache_options(decoder), std::ssize(requests));
    run(decoder, sequences, generation, cache);
  } else {
    for (Sequence& sequence : sequences) {
      std::vector<Sequence> alone = {std::move(sequence)};
      run(decoder, alone, generation, cache);
      sequence = std::move(alone.front());
    }
  }
  std::vector<std::vector<int32_t>> answers;
  for (const Sequence& sequence : sequences) answers.push_back(answer(sequence));
  return answers;
}

std::vector<int32_t> Dialogue::generate(const Request& request, const config::GenerationConfig& generation) {
  std::vector<Sequence> sequences = {begin(request, decoder_)};
  reused_ = 0;
  if (decoder_.caches_keys()) {
    const int64_t capacity = std::ssize(request.prompt) + generation.max_new_tokens;
    if (!cache_) cache_.emplace(decoder_.spec(), capacity, cache_options(decoder_));
    // At least the last token is computed: its prediction is what is asked for.
    const auto end = request.prompt.end() - 1;
    reused_ = std::mismatch(request.prompt.begin(), end, cached_.begin(), cached_.end()).first - request.prompt.begin();
    cached_.clear();  // where this ends in an exception, nothing is known of the cache
    cache_->truncate(0, reused_);
    cache_->reserve(capacity);
  }
  run(decoder_, sequences, generation, cache_);
  const std::vector<int32_t>& tokens = sequences.front().tokens;
  if (cache_) cached_.assign(tokens.begin(), tokens.begin() + cache_->length());
  return answer(sequences.front());
}

}  // namespace fettle::model
