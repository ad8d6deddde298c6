// SPDX-License-Identifier: Apache-2.0
/// Continuing a text, one token at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "config/config.h"
#include "model/decoder.h"
#include "model/kv_cache.h"

namespace fettle::model {

/// What ends an answer before generation.max_new_tokens.
struct Stop {
  std::vector<int32_t> tokens;            ///< any of them
  std::function<bool(int32_t)> on_token;  ///< called with every new token; false stops after it
};

/// One text to continue.
struct Request {
  std::vector<int32_t> prompt;
  uint64_t seed = 0;  ///< of its own sampler
  Stop stop = {};
};

/// The new tokens after `prompt`, without the stop token that ended them; at most generation.max_new_tokens. Greedy, or
/// sampled (do_sample) with transformers' processors in transformers' order: repetition_penalty, temperature, top_k,
/// top_p, min_p. A pure function of its arguments: the sampler has its own generator. Throws Error{kData} for an empty
/// prompt or an id outside the vocabulary, {kDiverged} for logits that are not finite.
std::vector<int32_t> generate(const Decoder& decoder, const std::vector<int32_t>& prompt,
                              const config::GenerationConfig& generation, uint64_t seed, const Stop& stop = {});

/// The same for several texts at once, in their order: each weight is read once a step for all of them. What one of
/// them gets is what it would get alone, to rounding. One that has ended takes no more time. Where the decoder caches
/// nothing, one follows the other.
std::vector<std::vector<int32_t>> generate(const Decoder& decoder, const std::vector<Request>& requests,
                                           const config::GenerationConfig& generation);

/// A text that is continued again and again, such as a chat: what a prompt begins with as the last one and its answer
/// did is not computed anew.
class Dialogue {
 public:
  /// The decoder outlives it.
  explicit Dialogue(const Decoder& decoder) : decoder_(decoder) {}

  /// As generate.
  std::vector<int32_t> generate(const Request& request, const config::GenerationConfig& generation);
  /// Tokens of the last prompt that were not computed anew.
  [[nodiscard]] int64_t reused() const { return reused_; }

 private:
  const Decoder& decoder_;
  std::optional<KvCache> cache_;
  std::vector<int32_t> cached_;  // whose keys and values are in the cache
  int64_t reused_ = 0;
};

}  // namespace fettle::model
