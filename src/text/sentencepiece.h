// SPDX-License-Identifier: Apache-2.0
/// tokenizer.model files: the protobuf that sentencepiece writes.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace fettle::text {

/// What is used of sentencepiece's ModelProto, with its defaults (sentencepiece_model.proto).
struct SentencePieceModel {
  enum class Kind : int64_t { kUnigram = 1, kBpe = 2 };
  enum class PieceType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };

  std::vector<Piece> pieces;  ///< by id
  Kind kind = Kind::kUnigram;
  int64_t unk_id = 0;
  int64_t bos_id = 1;
  int64_t eos_id = 2;
  std::string unk_piece = "<unk>";
  std::string bos_piece = "<s>";
  std::string eos_piece = "</s>";
  bool byte_fallback = false;
  std::string precompiled_charsmap;

  /// Ids by text; the last of equal pieces wins.
  [[nodiscard]] std::unordered_map<std::string, int64_t> vocabulary() const;
};

/// Reads the protobuf; every length is checked before it is believed. Throws Error{kData} naming `name` for a truncated
/// or malformed file, pieces that are not UTF-8 or longer than 1024 bytes, or a model that is neither BPE nor Unigram.
SentencePieceModel parse_sentencepiece(std::string_view bytes, std::string_view name);

/// The "model" part of a tokenizer.json: BPE with the merges that transformers derives (every split of a piece into two
/// pieces, by the id of the result, then by the length of the left one), or Unigram with the pieces' scores.
nlohmann::json sentencepiece_bpe(const SentencePieceModel& model);
nlohmann::json sentencepiece_unigram(const SentencePieceModel& model);

}  // namespace fettle::text
