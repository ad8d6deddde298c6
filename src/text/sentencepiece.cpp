// SPDX-License-Identifier: Apache-2.0
#include "text/sentencepiece.h"

#include <fmt/core.h>

#include <bit>
#include <cstring>

#include "base/error.h"
#include "base/utf8.h"

namespace fettle::text {
namespace {

constexpr size_t kLongestPiece = 1024;  // bytes; splitting a piece is quadratic in its length

/// One field of a protobuf message: a number for the types varint and fixed, bytes for the delimited type.
struct Field {
  uint32_t number = 0;
  uint64_t value = 0;
  std::string_view bytes;
  bool delimited = false;
};

/// Walks the fields of one protobuf message (wire format of protobuf.dev/programming-guides/encoding).
class MessageReader {
 public:
  MessageReader(std::string_view bytes, std::string_view name) : bytes_(bytes), name_(name) {}

  bool next(Field& field) {
    if (position_ == bytes_.size()) {
      return false;
    }
    const uint64_t key = varint();
    field = {.number = static_cast<uint32_t>(key >> 3), .value = 0, .bytes = {}, .delimited = false};
    switch (key & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = fixed(8);
        break;
      case 2:
        field.delimited = true;
        field.bytes = take(varint());
        break;
      case 5:
        field.value = fixed(4);
        break;
      default:
        fail("an unknown wire type");
    }
    return true;
  }

 private:
  [[noreturn]] void fail(std::string_view reason) const {
    throw Error(ExitCode::kData, fmt::format("{}: not a sentencepiece model: {}", name_, reason),
                "check that tokenizer.model was copied completely");
  }

  std::string_view take(uint64_t size) {
    if (size > bytes_.size() - position_) {
      fail("a field is longer than the file");
    }
    const std::string_view taken = bytes_.substr(position_, size);
    position_ += size;
    return taken;
  }

  uint64_t fixed(size_t size) {
    uint64_t value = 0;
    std::memcpy(&value, take(size).data(), size);  // protobuf is little-endian, as every machine we build for
    return value;
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) {
        return value;
      }
    }
    fail("a number of more than ten bytes");
  }

  std::string_view bytes_;
  std::string_view name_;
  size_t position_ = 0;
};

bool is_utf8(std::string_view text) {
  return find_invalid_utf8(text) == std::string_view::npos;
}

SentencePieceModel::Piece parse_piece(std::string_view bytes, size_t id, std::string_view name) {
  SentencePieceModel::Piece piece;
  Field field;
  for (MessageReader reader(bytes, name); reader.next(field);) {
    if (field.number == 1 && field.delimited) {
      piece.text = field.bytes;
    } else if (field.number == 2) {
      piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    } else if (field.number == 3) {
      piece.type = static_cast<SentencePieceModel::PieceType>(field.value);
    }
  }
  if (piece.text.size() > kLongestPiece || !is_utf8(piece.text)) {
    throw Error(ExitCode::kData,
                fmt::format("{}: piece {} is not UTF-8 or longer than {} bytes", name, id, kLongestPiece));
  }
  return piece;
}

void parse_trainer_spec(std::string_view bytes, std::string_view name, SentencePieceModel& model) {
  Field field;
  for (MessageReader reader(bytes, name); reader.next(field);) {
    switch (field.number) {
      case 3:
        model.kind = static_cast<SentencePieceModel::Kind>(field.value);
        break;
      case 35:
        model.byte_fallback = field.value != 0;
        break;
      case 40:
        model.unk_id = static_cast<int64_t>(field.value);
        break;
      case 41:
        model.bos_id = static_cast<int64_t>(field.value);
        break;
      case 42:
        model.eos_id = static_cast<int64_t>(field.value);
        break;
      case 45:
        model.unk_piece = field.bytes;
        break;
      case 46:
        model.bos_piece = field.bytes;
        break;
      case 47:
        model.eos_piece = field.bytes;
        break;
      default:
        break;
    }
  }
}

void parse_normalizer_spec(std::string_view bytes, std::string_view name, SentencePieceModel& model) {
  Field field;
  for (MessageReader reader(bytes, name); reader.next(field);) {
    if (field.number == 2 && field.delimited) {
      model.precompiled_charsmap = field.bytes;
    }
  }
}

void check_model(const SentencePieceModel& model, std::string_view name) {
  if (model.pieces.empty()) {
    throw Error(ExitCode::kData, fmt::format("{}: not a sentencepiece model: it has no pieces", name),
                "check that tokenizer.model was copied completely");
  }
  if (model.kind != SentencePieceModel::Kind::kUnigram && model.kind != SentencePieceModel::Kind::kBpe) {
    throw Error(ExitCode::kData, fmt::format("{}: a sentencepiece model that is neither BPE nor Unigram", name));
  }
  if (!is_utf8(model.unk_piece) || !is_utf8(model.bos_piece) || !is_utf8(model.eos_piece)) {
    throw Error(ExitCode::kData, fmt::format("{}: a special piece is not UTF-8", name));
  }
}

}  // namespace

std::unordered_map<std::string, int64_t> SentencePieceModel::vocabulary() const {
  std::unordered_map<std::string, int64_t> ids;
  ids.reserve(pieces.size());
  for (size_t id = 0; id < pieces.size(); ++id) {
    ids[pieces[id].text] = static_cast<int64_t>(id);
  }
  return ids;
}

SentencePieceModel parse_sentencepiece(std::string_view bytes, std::string_view name) {
  SentencePieceModel model;
  Field field;
  for (MessageReader reader(bytes, name); reader.next(field);) {
    if (!field.delimited) {
      continue;
    }
    if (field.number == 1) {
      model.pieces.push_back(parse_piece(field.bytes, model.pieces.size(), name));
    } else if (field.number == 2) {
      parse_trainer_spec(field.bytes, name, model);
    } else if (field.number == 3) {
      parse_normalizer_spec(field.bytes, name, model);
    }
  }
  check_model(model, name);
  return model;
}

nlohmann::json sentencepiece_bpe(const SentencePieceModel& model) {
  const auto ids = model.vocabulary();
  auto merges = nlohmann::json::array();
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const std::string& piece = model.pieces[id].text;
    if (ids.at(piece) != static_cast<int64_t>(id)) {
      continue;
    }
    for (size_t split = 1; split < piece.size(); ++split) {
      if ((static_cast<uint8_t>(piece[split]) & 0xc0) == 0x80) {
        continue;  // inside a character
      }
      std::string left = piece.substr(0, split);
      std::string right = piece.substr(split);
      if (ids.contains(left) && ids.contains(right)) {
        merges.push_back({std::move(left), std::move(right)});
      }
    }
  }
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", true},
          {"byte_fallback", model.byte_fallback},
          {"ignore_merges", false},
          {"vocab", ids},
          {"merges", std::move(merges)}};
}

nlohmann::json sentencepiece_unigram(const SentencePieceModel& model) {
  auto vocabulary = nlohmann::json::array();
  for (const auto& piece : model.pieces) {
    vocabulary.push_back({piece.text, static_cast<double>(piece.score)});
  }
  return {{"type", "Unigram"},
          {"unk_id", model.unk_id},
          {"byte_fallback", model.byte_fallback},
          {"vocab", std::move(vocabulary)}};
}

}  // namespace fettle::text
