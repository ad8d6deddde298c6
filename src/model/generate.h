// SPDX-License-Identifier: Apache-2.0
/// Continuing a text, one token at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "config/config.h"
#include "model/decoder.h"

namespace fettle::model {

/// Tokens that end the answer (generation_config's eos_token_id, else the tokenizer's).
struct StopTokens {
  std::vector<int32_t> ids;
};

/// Called with every new token; false stops.
using TokenCallback = std::function<bool(int32_t)>;

/// The new tokens after `prompt`, without the stop token that ended them; at most generation.max_new_tokens. Greedy, or
/// sampled (do_sample) with transformers' processors in transformers' order: repetition_penalty, temperature, top_k,
/// top_p. A pure function of its arguments: the sampler has its own generator. Throws Error{kData} for an empty prompt
/// or an id outside the vocabulary.
std::vector<int32_t> generate(const Decoder& decoder, const std::vector<int32_t>& prompt,
                              const config::GenerationConfig& generation, const StopTokens& stop, uint64_t seed,
                              const TokenCallback& on_token = {});

}  // namespace fettle::model
