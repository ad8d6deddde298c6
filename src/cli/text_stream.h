// SPDX-License-Identifier: Apache-2.0
/// Generated tokens as text, piece by piece.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace fettle::cli {

/// Decodes tokens as they come. A piece is held back while it ends inside a character or a run of byte tokens. All
/// pieces together are the text that decoding all tokens at once gives.
class TextStream {
 public:
  explicit TextStream(text::Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  /// The text that the token adds, possibly none.
  std::string add(int32_t token);
  /// What was held back.
  std::string finish();

 private:
  /// The text behind what was given out: decoded together with some tokens before it, since a token's text may depend
  /// on its neighbours (spaces).
  [[nodiscard]] std::string pending() const;

  text::Tokenizer tokenizer_;
  std::vector<int32_t> tokens_;
  size_t context_ = 0;  ///< first token that is decoded again
  size_t given_ = 0;    ///< tokens whose text was given out
};

}  // namespace fettle::cli
