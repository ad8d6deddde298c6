// SPDX-License-Identifier: Apache-2.0
#include "text/gguf_vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "text/tokenizer_class.h"

namespace fettle::text {
namespace {

using nlohmann::json;

constexpr const char* kConvert = "convert the model with llama.cpp's convert_hf_to_gguf.py";
constexpr const char* kSpace = "▁";   // sentencepiece's
constexpr float kAddedScore = -1000;  // of tokens that no merge makes, as in llama.cpp's converter

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ExitCode::kConfig, fmt::format("the tokenizer's {} has no counterpart in llama.cpp", what), kConvert);
}

/// As tokenizer.json spells it, for a message.
std::string spelled(const json& part) {
  return shorten(part.dump(), 200);
}

struct Merge {
  std::string left;
  std::string right;
};

/// Pairs, or since long ago "left right".
std::vector<Merge> merges_of(const json& model) {
  std::vector<Merge> merges;
  for (const json& merge : model.value("merges", json::array())) {
    if (merge.is_array()) {
      merges.push_back({merge.at(0).get<std::string>(), merge.at(1).get<std::string>()});
    } else {
      const auto text = merge.get<std::string>();
      const size_t space = text.find(' ');
      merges.push_back({text.substr(0, space), text.substr(space + 1)});
    }
  }
  return merges;
}

bool is_byte_token(std::string_view token) {
  return token.size() == 6 && token.starts_with("<0x") && token.ends_with('>') &&
         token.substr(3, 2).find_first_not_of("0123456789ABCDEF") == std::string_view::npos;
}

/// llama.cpp's converter takes these for control tokens whatever their "special" says.
bool looks_special(std::string_view token) {
  return token == "<pad>" || token == "<mask>" || token == "<2mass>" || token == "[@BOS@]" ||
         (token.starts_with("<|") && token.ends_with("|>")) || (token.starts_with("<｜") && token.ends_with("｜>")) ||
         (token.starts_with("<unused") && token.ends_with(">"));
}

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

class Builder {
 public:
  Builder(const Tokenizer& tokenizer, int64_t vocab_size)
      : definition_(json::parse(tokenizer.json())),
        model_(definition_.at("model")),
        has_chat_template_(tokenizer.has_chat_template()) {
    if (tokenizer.vocab_size() > vocab_size) {
      throw Error(ExitCode::kData,
                  fmt::format("the tokenizer has {} tokens, the model {}", tokenizer.vocab_size(), vocab_size),
                  "the tokenizer belongs to another model: set tokenizer_name to this model's");
    }
    size_ = static_cast<size_t>(vocab_size);
  }

  GgufVocabulary build() {
    require_plain_bpe();
    const bool sentencepiece = flag_at(model_, "byte_fallback", false);
    fill_tokens(sentencepiece);
    if (sentencepiece) {
      make_sentencepiece();
    } else {
      make_byte_level();
    }
    require_distinct();
    return std::move(vocabulary_);
  }

 private:
  void require_plain_bpe() const {
    if (const std::string type = text_at(model_, "type"); type != "BPE") refuse(fmt::format("model type '{}'", type));
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (const std::string text = text_at(model_, key); !text.empty()) refuse(fmt::format("{} '{}'", key, text));
    }
    if (const json& dropout = model_.value("dropout", json()); !dropout.is_null() && dropout != 0) refuse("dropout");
  }

  void fill_tokens(bool sentencepiece) {
    vocabulary_.tokens.resize(size_);
    vocabulary_.types.assign(size_, static_cast<int32_t>(GgufTokenType::kUnused));
    for (size_t i = 0; i < size_; ++i) vocabulary_.tokens[i] = fmt::format("[PAD{}]", i);
    const std::string unknown = text_at(model_, "unk_token");
    for (const auto& [token, id] : model_.at("vocab").items()) {
      const GgufTokenType type = token == unknown                        ? GgufTokenType::kUnknown
                                 : sentencepiece && is_byte_token(token) ? GgufTokenType::kByte
                                                                         : GgufTokenType::kNormal;
      set(id.get<size_t>(), token, type);
    }
    for (const json& added : definition_.value("added_tokens", json::array())) {
      auto content = added.at("content").get<std::string>();
      const bool control = flag_at(added, "special", false) || looks_special(content);
      if (!control) content = replaced(std::move(content), kSpace, " ");
      set(added.at("id").get<size_t>(), content, control ? GgufTokenType::kControl : GgufTokenType::kUserDefined);
    }
  }

  void set(size_t id, std::string token, GgufTokenType type) {
    vocabulary_.tokens.at(id) = std::move(token);
    vocabulary_.types.at(id) = static_cast<int32_t>(type);
  }

  /// Of NFC llama.cpp knows nothing; it changes only texts that are not in that form, as few are.
  void make_byte_level() {
    const json& normalizer = definition_.at("normalizer");
    if (!normalizer.is_null() && text_at(normalizer, "type") != "NFC") {
      refuse(fmt::format("normalizer {}", spelled(normalizer)));
    }
    vocabulary_.model = "gpt2";
    vocabulary_.pre = gguf_pre_tokenizer(definition_.at("pre_tokenizer"), flag_at(model_, "ignore_merges", false));
    for (const Merge& merge : merges_of(model_)) {
      // A space inside a token would end it; "Ġ" is how bytes spell one.
      vocabulary_.merges.push_back(replaced(merge.left, " ", "Ġ") + " " + replaced(merge.right, " ", "Ġ"));
    }
  }

  void make_sentencepiece() {
    vocabulary_.model = "llama";
    vocabulary_.pre = "default";
    if (flag_at(model_, "ignore_merges", false)) refuse("ignore_merges beside byte_fallback");
    read_spaces();
    for (int byte = 0; byte < 256; ++byte) {
      if (!model_.at("vocab").contains(fmt::format("<0x{:02X}>", byte))) {
        throw Error(ExitCode::kData, fmt::format("the tokenizer has byte_fallback, but no token <0x{:02X}>", byte),
                    "use the model's original tokenizer");
      }
    }
    score_tokens();
  }

  /// A normalizer that writes spaces as ▁, perhaps with one more before the text, or a Metaspace that does both.
  void read_spaces() {
    const json& normalizer = definition_.at("normalizer");
    json parts = normalizer.is_null() ? json::array() : json::array({normalizer});
    if (text_at(normalizer, "type") == "Sequence") parts = normalizer.at("normalizers");
    bool replaces = false;
    for (const json& part : parts) {
      if (text_at(part, "type") == "Prepend" && text_at(part, "prepend") == kSpace) {
        vocabulary_.add_space_prefix = true;
      } else if (text_at(part, "type") == "Replace" && part.value("pattern", json()) == json({{"String", " "}}) &&
                 text_at(part, "content") == kSpace) {
        replaces = true;
      } else {
        refuse(fmt::format("normalizer {}", spelled(part)));
      }
    }
    const json& pre_tokenizer = definition_.at("pre_tokenizer");
    if (text_at(pre_tokenizer, "type") == "Metaspace" && text_at(pre_tokenizer, "replacement") == kSpace &&
        !flag_at(pre_tokenizer, "split", true)) {
      const std::string scheme = text_at(pre_tokenizer, "prepend_scheme");
      vocabulary_.prefix_is_inexact = scheme == "first";
      vocabulary_.add_space_prefix |= scheme == "always" || (scheme == "first" && !has_chat_template_);
      replaces = true;
    } else if (!pre_tokenizer.is_null()) {
      refuse(fmt::format("pre_tokenizer {}", spelled(pre_tokenizer)));
    }
    if (!replaces) refuse("treatment of spaces");
  }

  /// sentencepiece and llama.cpp merge the pair whose token has the best score, whatever its two parts; the merges
  /// of a tokenizer.json say as much only if all that make a token stand together, and none is missing.
  void score_tokens() {
    vocabulary_.scores.assign(size_, 0);
    std::unordered_map<std::string, size_t> rank;  // of the token that a merge makes
    std::unordered_set<std::string> pairs;
    std::string last;
    for (const Merge& merge : merges_of(model_)) {
      const std::string token = merge.left + merge.right;
      if (token != last && !rank.emplace(token, rank.size()).second) refuse_merges(token);
      last = token;
      pairs.insert(merge.left + '\0' + merge.right);
    }
    size_t next = rank.size();
    for (size_t id = 0; id < size_; ++id) {
      const auto type = static_cast<GgufTokenType>(vocabulary_.types[id]);
      const std::string& token = vocabulary_.tokens[id];
      if (type == GgufTokenType::kControl || type == GgufTokenType::kUserDefined) vocabulary_.scores[id] = kAddedScore;
      if (type != GgufTokenType::kNormal) continue;
      require_all_merges(token, pairs);
      const auto made = rank.find(token);
      vocabulary_.scores[id] = -static_cast<float>(made == rank.end() ? next++ : made->second);
    }
  }

  void require_all_merges(const std::string& token, const std::unordered_set<std::string>& pairs) const {
    const json& known = model_.at("vocab");
    const auto is_mergeable = [&](const std::string& part) {
      const auto found = known.find(part);
      return found != known.end() &&
             vocabulary_.types.at(found->get<size_t>()) == static_cast<int32_t>(GgufTokenType::kNormal);
    };
    for (size_t cut = 1; cut < token.size(); ++cut) {
      if ((static_cast<unsigned char>(token[cut]) & 0xC0U) == 0x80U) continue;  // inside a character
      const std::string left = token.substr(0, cut);
      const std::string right = token.substr(cut);
      if (is_mergeable(left) && is_mergeable(right) && !pairs.contains(left + '\0' + right)) refuse_merges(token);
    }
  }

  [[noreturn]] static void refuse_merges(const std::string& token) {
    refuse(fmt::format("order of merges (see {}), which is not that of a sentencepiece model,", quote(token)));
  }

  /// llama.cpp's loader ends the program over two equal tokens.
  void require_distinct() const {
    std::unordered_set<std::string_view> seen;
    for (const std::string& token : vocabulary_.tokens) {
      if (!seen.insert(token).second) {
        throw Error(ExitCode::kData, fmt::format("the tokenizer has two tokens {}", quote(token)),
                    "use the model's original tokenizer");
      }
    }
  }

  const json definition_;
  const json& model_;
  bool has_chat_template_;
  size_t size_ = 0;
  GgufVocabulary vocabulary_;
};

}  // namespace

GgufVocabulary make_gguf_vocabulary(const Tokenizer& tokenizer, int64_t vocab_size) {
  return Builder(tokenizer, vocab_size).build();
}

}  // namespace fettle::text
