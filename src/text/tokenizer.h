// SPDX-License-Identifier: Apache-2.0
/// A model's tokenizer, loaded from its files as transformers 5 loads them (source of truth: transformers 5.23,
/// AutoTokenizer.from_pretrained), over the Hugging Face tokenizers crate.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fettle::text {

/// Bytes [begin, end) of a UTF-8 text.
struct Span {
  size_t begin = 0;
  size_t end = 0;
  friend bool operator==(const Span&, const Span&) = default;
};

/// A tokenized text. offsets[i] is what token i covers of the given text, in bytes; empty for a token that the
/// tokenizer added itself (BOS, EOS). A byte-level token may cover less than a character: its offsets are the
/// character's.
struct Encoding {
  std::vector<int32_t> ids;
  std::vector<Span> offsets;
};

/// A text and ranges of it (ascending, not overlapping) in which nothing is ever special: what came from a record, or
/// of that only what spells a special token.
struct SegmentedText {
  std::string text;
  std::vector<Span> user;
};

/// What a tokenizer is made of: the contents of its files, empty where there is none.
struct TokenizerFiles {
  std::string name = {};                 ///< folder or file that errors name
  std::string tokenizer_json = {};       ///< wins over sentencepiece_model
  std::string sentencepiece_model = {};  ///< tokenizer.model, a ModelProto of sentencepiece (BPE or Unigram)
  std::string tokenizer_config = {};     ///< tokenizer_config.json
  std::string special_tokens_map = {};   ///< special_tokens_map.json
  std::string added_tokens = {};         ///< added_tokens.json
  std::string chat_template = {};        ///< chat_template.jinja; wins over the template in tokenizer_config
  std::string tool_use_template = {};    ///< additional_chat_templates/tool_use.jinja; likewise
  std::string model_type = {};           ///< config.json's model_type: decides, too, what transformers rebuilds
};

/// Immutable, movable, cheap to copy; every const function may be called from many threads at once.
class Tokenizer {
 public:
  /// Reads a model folder. Throws Error{kNoInput} if it has neither tokenizer.json nor tokenizer.model, {kData} naming
  /// the file if one is truncated, malformed or contradicts another.
  static Tokenizer load(const std::filesystem::path& folder);

  /// The same from contents that are already in memory (GGUF, fuzzers). Throws Error{kData}.
  static Tokenizer from_files(const TokenizerFiles& files);

  /// `text` must be valid UTF-8 (else Error{kData}). Text that spells a special token becomes that token, as in
  /// transformers' tokenizer(text, add_special_tokens=...).
  [[nodiscard]] Encoding encode(std::string_view text, bool add_special_tokens) const;

  /// The same, but text that spells a special token wholly or partly inside a user range is ordinary text. Equal to
  /// encode(text.text, …) whenever no special token touches a user range.
  [[nodiscard]] Encoding encode(const SegmentedText& text, bool add_special_tokens) const;

  /// As transformers' tokenizer.decode(ids, skip_special_tokens=…). Throws Error{kData} for a negative id; ids beyond
  /// the vocabulary are skipped.
  [[nodiscard]] std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  [[nodiscard]] std::optional<int32_t> token_to_id(std::string_view token) const;
  /// The token's spelling in the vocabulary (e.g. "Ġthe"). Throws Error{kData} for an id without a token.
  [[nodiscard]] std::string token(int32_t id) const;
  /// Largest id + 1, added tokens included: a model's embedding must have at least as many rows.
  [[nodiscard]] int64_t vocab_size() const;
  /// True for the ids that decode(…, skip_special_tokens = true) leaves out.
  [[nodiscard]] bool is_special(int32_t id) const;

  [[nodiscard]] std::optional<int32_t> bos_id() const;
  [[nodiscard]] std::optional<int32_t> eos_id() const;
  [[nodiscard]] std::optional<int32_t> pad_id() const;
  [[nodiscard]] std::optional<int32_t> unk_id() const;
  /// How the special tokens (see is_special) are spelled in text; none of them empty.
  [[nodiscard]] std::vector<std::string> special_spellings() const;
  /// {"bos_token": "<s>", …}: the names that a chat template sees.
  [[nodiscard]] const nlohmann::json& special_tokens() const;

  [[nodiscard]] bool has_chat_template() const;
  /// The Jinja source; empty if the model has none.
  [[nodiscard]] const std::string& chat_template() const;
  /// The one named tool_use, which transformers takes for a chat with tools; empty if there is none.
  [[nodiscard]] const std::string& tool_use_template() const;

  /// The ids that encode(text, true) puts before and after a text's own tokens. Throws Error{kData} if the tokenizer
  /// changes those, too.
  struct Surroundings {
    std::vector<int32_t> before;
    std::vector<int32_t> after;
  };
  [[nodiscard]] Surroundings surroundings() const;

  /// The text of a tokenizer.json: the file's vocabulary and merges, every other part as transformers makes it, and all
  /// added tokens.
  [[nodiscard]] std::string json() const;

  /// The files that were read and that a saved adapter or model needs beside it; empty after from_files.
  [[nodiscard]] const std::vector<std::filesystem::path>& files() const;
  /// SHA-256 over everything that decides encode, decode and the chat template.
  [[nodiscard]] const std::string& fingerprint() const;

 private:
  struct State;
  explicit Tokenizer(std::shared_ptr<const State> state);

  std::shared_ptr<const State> state_;
};

}  // namespace fettle::text
