// SPDX-License-Identifier: Apache-2.0
/// What `fettle generate` and `fettle chat` share: where an answer ends, and its text as it comes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/text_stream.h"
#include "config/config.h"
#include "model/decoder.h"
#include "text/tokenizer.h"
#include "train/inputs.h"

namespace fettle::cli {

/// What ends an answer: as in transformers generation_config's eos_token_id (a number or a list), else config.json's.
/// The tokenizer's EOS too after a template: Fettle's training ends an answer with it, whatever the base's
/// generation_config says, which is then one of its pre-training. And where nothing else is configured. A stop string
/// that spells a special token is one as well: no text shows it.
std::vector<int32_t> stop_tokens(const train::ModelInputs& inputs, const config::GenerationConfig& generation);

/// Refuses a length whose keys and values no memory holds; warns of one that the model was not made for.
void check_length(const model::Decoder& model, size_t prompt, int64_t max_new_tokens);

/// Writes to standard output at once; false where that fails, which run() tells in the end.
bool print_now(const std::string& text);

/// The seed of one of several answers: a function of the run's seed and the answer's place alone.
uint64_t seed_of(int64_t seed, size_t index);

/// Ends a text where one of several strings has appeared, with that string as its end (transformers'
/// StopStringCriteria, but what the last token holds after it is left out).
class StopText {
 public:
  explicit StopText(std::vector<std::string> strings) : strings_(std::move(strings)) {}

  /// What of the text so far can be shown: not what may become one of the strings.
  std::string add(const std::string& piece);
  /// What was held back.
  std::string finish();
  [[nodiscard]] bool has_ended() const { return has_ended_; }

 private:
  std::vector<std::string> strings_;
  std::string held_;
  bool has_ended_ = false;
};

/// The text of an answer, token by token.
class AnswerText {
 public:
  AnswerText(const text::Tokenizer& tokenizer, const std::vector<std::string>& stop_strings)
      : stream_(tokenizer), stop_(stop_strings) {}

  /// What can be shown.
  std::string add(int32_t token) { return keep(stop_.add(stream_.add(token))); }
  std::string finish() { return keep(stop_.add(stream_.finish()) + stop_.finish()); }
  /// Whether a stop string is its end.
  [[nodiscard]] bool has_ended() const { return stop_.has_ended(); }
  /// All that was shown.
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::string keep(std::string piece) {
    text_ += piece;
    return piece;
  }

  TextStream stream_;
  StopText stop_;
  std::string text_;
};

}  // namespace fettle::cli
