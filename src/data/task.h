// SPDX-License-Identifier: Apache-2.0
/// Multiple-choice tasks: a context, and choices of which the model is to find one the likeliest continuation. Read and
/// tokenized as lm-evaluation-harness 0.4.13 does it for a causal model (TemplateLM._encode_pair, HFLM.tok_encode).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/tokenizer.h"

namespace fettle::data {

/// What the model reads, and the last `continuation.size()` predictions that count: of input[t] the next token.
struct ScoredContinuation {
  std::vector<int32_t> input;         ///< context and continuation, without the last token
  std::vector<int32_t> continuation;  ///< at least one token, at most as many as `input`
};

struct TaskItem {
  std::vector<std::string> choices;
  int64_t gold = 0;                           ///< index of the right choice
  std::vector<ScoredContinuation> encodings;  ///< of each choice
};

struct Task {
  std::vector<TaskItem> items;
  int64_t truncated = 0;  ///< choices whose context was cut off at its beginning
};

/// Reads JSON lines {"context": text, "choices": [text, …], "gold": index}; a choice is appended to the context as it
/// is. `longest`: tokens that the model reads at once; a longer context loses its beginning. Throws Error{kData} naming
/// the line for an item that is not that, has fewer than two choices, an empty one, or one that alone is longer.
Task read_task(const std::filesystem::path& file, const text::Tokenizer& tokenizer, int64_t longest);

/// Context and continuation as tokens. White space that ends the context belongs to the continuation; special tokens
/// are added as the tokenizer adds them, unless the text begins with BOS already; an empty context is BOS, else EOS.
/// Throws BadRecord where the continuation has no token of its own, or an empty context no token to stand for it.
std::pair<std::vector<int32_t>, std::vector<int32_t>> encode_pair(const text::Tokenizer& tokenizer,
                                                                  std::string_view context,
                                                                  std::string_view continuation);

/// Unicode characters of valid UTF-8.
int64_t characters(std::string_view text);

}  // namespace fettle::data
