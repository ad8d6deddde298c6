// SPDX-License-Identifier: Apache-2.0
/// Continuing a text, one token at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "config/config.h"
#include "model/decoder.h"

namespace fettle::model {

/// What ends an answer before generation.max_new_tokens.
struct Stop {
  std::vector<int32_t> tokens;            ///< any of them
  std::function<bool(int32_t)> on_token;  ///< called with every new token; false stops after it
};

/// The new tokens after `prompt`, without the stop token that ended them; at most generation.max_new_tokens. Greedy, or
/// sampled (do_sample) with transformers' processors in transformers' order: repetition_penalty, temperature, top_k,
/// top_p. A pure function of its arguments: the sampler has its own generator. Throws Error{kData} for an empty prompt
/// or an id outside the vocabulary, {kDiverged} for logits that are not finite.
std::vector<int32_t> generate(const Decoder& decoder, const std::vector<int32_t>& prompt,
                              const config::GenerationConfig& generation, uint64_t seed, const Stop& stop = {});

}  // namespace fettle::model
