// SPDX-License-Identifier: Apache-2.0
/// The tokenizer classes of transformers 5 that build their parts themselves instead of reading them from
/// tokenizer.json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "text/sentencepiece.h"
#include "text/tokenizer.h"

namespace fettle::text {

/// What becomes of tokenizer.json: loaded as it is, or rebuilt by one of transformers' classes.
enum class Rebuild { kNone, kLlama, kGpt2, kQwen2 };

/// Which class transformers' AutoTokenizer takes: by tokenizer_class of tokenizer_config.json (`config`), by the model
/// type, and by whether tokenizer.json is byte-level.
Rebuild choose_rebuild(const TokenizerFiles& files, const nlohmann::json& config);

/// Normalizer, pre-tokenizer, decoder and fields of the model, as keys of tokenizer.json; empty for kNone.
nlohmann::json rebuilt_parts(Rebuild rebuild, const nlohmann::json& config);

/// The parts that transformers gives a sentencepiece model for which it has no class.
nlohmann::json generic_sentencepiece_parts(const SentencePieceModel& model);

/// The string at `key`, empty if there is none; the flag at `key`, `otherwise` if there is none.
std::string text_at(const nlohmann::json& object, const char* key);
bool flag_at(const nlohmann::json& object, const char* key, bool otherwise);

}  // namespace fettle::text
