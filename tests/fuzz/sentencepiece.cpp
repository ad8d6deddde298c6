// SPDX-License-Identifier: Apache-2.0
#include "text/sentencepiece.h"

#include "fuzz/target.h"

void fettle::fuzz::run_target(std::string_view input) {
  const auto model = text::parse_sentencepiece(input, "tokenizer.model");
  if (model.kind == text::SentencePieceModel::Kind::kBpe) {
    text::sentencepiece_bpe(model);
  } else {
    text::sentencepiece_unigram(model);
  }
}
