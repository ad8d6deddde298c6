// SPDX-License-Identifier: Apache-2.0
/// What transformers 5.23 makes of a tokenizer's files, as data for the tokenizers crate.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "text/tokenizer.h"

namespace fettle::text {

struct TokenizerPlan {
  std::string built_json;         ///< a tokenizer.json made from a sentencepiece model; empty: the file's own
  nlohmann::json patch;           ///< replaces keys of tokenizer.json; keys of "model" one by one
  nlohmann::json tokens_to_add;   ///< added tokens, in the order that decides the ids of new ones
  nlohmann::json special_tokens;  ///< {"bos_token": "<s>", …}
  std::string chat_template;      ///< empty: none
  std::string tool_use_template;  ///< for chats with tools; empty: chat_template
};

/// transformers 5 does not simply load tokenizer.json: for a tokenizer_class with a constructor of its own
/// (LlamaTokenizer, GPT2Tokenizer, Qwen2Tokenizer) it keeps vocabulary, merges and post-processor and rebuilds the
/// rest, so that for instance the digit splitter in SmolLM2's file is lost. BOS and EOS come from the file's
/// post-processor; only for a bare tokenizer.model from add_bos_token and add_eos_token. Sources:
/// AutoTokenizer.from_pretrained (models/auto/tokenization_auto.py), TokenizersBackend
/// (tokenization_utils_tokenizers.py). Throws Error{kData}.
TokenizerPlan plan_tokenizer(const TokenizerFiles& files);

}  // namespace fettle::text
