// SPDX-License-Identifier: Apache-2.0
/// A tokenizer in llama.cpp's terms: the tokenizer.ggml.* metadata of a GGUF file. Sources: llama.cpp's conversion
/// scripts (conversion/base.py, gguf-py/gguf/vocab.py) and its tokenizer (src/llama-vocab.cpp).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace fettle::text {

/// llama.cpp's types of tokens.
enum class GgufTokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

struct GgufVocabulary {
  std::string model;                ///< "gpt2": byte-level BPE; "llama": sentencepiece's BPE
  std::string pre;                  ///< how a text is split before the merges; llama: "default"
  std::vector<std::string> tokens;  ///< by id
  std::vector<int32_t> types;       ///< GgufTokenType, by id
  std::vector<float> scores;        ///< llama: a pair that makes a token of a higher score is merged first; gpt2: empty
  std::vector<std::string> merges;  ///< gpt2: "left right", in order; llama: empty
  bool add_space_prefix = false;    ///< llama: a space is put before a text, and after each special token
  bool prefix_is_inexact = false;   ///< the tokenizer itself puts one at the beginning alone
};

/// Where llama.cpp's two ways with the space before a text are both not the tokenizer's, the one is taken that is right
/// in chats, or, without a chat template, the one that is right at the beginning. `vocab_size`: the model's; ids
/// without a token get a name of their own and are never used. Throws Error{kConfig} naming the part of the tokenizer
/// for which llama.cpp has no counterpart, {kData} for one that its loader would end the program over (tokens that are
/// equal, sentencepiece without all bytes) or that does not fit the model.
GgufVocabulary make_gguf_vocabulary(const Tokenizer& tokenizer, int64_t vocab_size);

/// llama.cpp's name for how a byte-level tokenizer splits texts (tokenizer.ggml.pre): `pre_tokenizer` of a
/// tokenizer.json, and whether a word that is a token stays whole (`ignore_merges` of its model). Throws Error{kConfig}
/// if llama.cpp has none.
std::string gguf_pre_tokenizer(const nlohmann::json& pre_tokenizer, bool ignore_merges);

}  // namespace fettle::text
