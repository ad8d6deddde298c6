// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <mutex>
#include <random>
#include <unordered_map>
#include <utility>

#include "base/file.h"
#include "base/hash.h"
#include "text/rust.h"
#include "text/tokenizer_plan.h"

namespace fettle::text {
namespace {

struct SpecialToken {
  std::string content;
  bool normalized = false;
  bool lstrip = false;
  bool rstrip = false;
};

/// A special token that the template wrote, with the white space that it swallows.
struct Placement {
  int32_t id = 0;
  Span span;
};

bool touches(const Span& span, const std::vector<Span>& ranges) {
  const auto first =
      std::partition_point(ranges.begin(), ranges.end(), [&](const Span& range) { return range.end <= span.begin; });
  return first != ranges.end() && first->begin < span.end;
}

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

/// Characters and a random number: no text contains it, so no text can forge it.
std::string make_marker() {
  std::random_device random;
  std::string marker = "\uFDD0";
  for (int i = 0; i < 4; ++i) {
    marker += fmt::format("{:08x}", random());
  }
  return marker + "\uFDD1";
}

class EncodedTokens {
 public:
  EncodedTokens() = default;
  ~EncodedTokens() { fettle_tokens_free(&tokens_); }
  EncodedTokens(const EncodedTokens&) = delete;
  EncodedTokens& operator=(const EncodedTokens&) = delete;
  FettleTokens* out() { return &tokens_; }
  [[nodiscard]] std::span<const FettleToken> span() const { return {tokens_.data, tokens_.size}; }

 private:
  FettleTokens tokens_{};
};

/// Appends the tokens of `text` to `encoding`, without the first `drop`, their offsets moved by `shift` bytes.
void append_encoded(const FettleTokenizer* tokenizer, std::string_view text, bool add_special_tokens,
                    std::pair<size_t, int64_t> drop_and_shift, Encoding& encoding) {
  EncodedTokens tokens;
  rust::Buffer error;
  const int32_t status = fettle_tokenizer_encode(tokenizer, rust::data(text), text.size(), add_special_tokens ? 1 : 0,
                                                 tokens.out(), error.out());
  rust::check(status, error, ExitCode::kData, "cannot tokenize a text");
  const auto [drop, shift] = drop_and_shift;
  for (const auto& token : tokens.span().subspan(std::min(drop, tokens.span().size()))) {
    encoding.ids.push_back(static_cast<int32_t>(token.id));
    encoding.offsets.push_back({static_cast<size_t>(token.begin + shift), static_cast<size_t>(token.end + shift)});
  }
}

std::string read_if_exists(const std::filesystem::path& path, std::vector<std::filesystem::path>& files) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return {};
  }
  files.push_back(path);
  return read_file(path);
}

/// The same of a file that is never empty.
std::string read_content(const std::filesystem::path& path, std::vector<std::filesystem::path>& files) {
  std::string content = read_if_exists(path, files);
  if (content.empty() && !files.empty() && files.back() == path) {
    throw Error(ExitCode::kData, path.string() + " is empty", "copy it again");
  }
  return content;
}

std::string model_type_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> ignored;
  const auto config = nlohmann::json::parse(read_if_exists(folder / "config.json", ignored), nullptr, false);
  return config.is_object() && config.contains("model_type") && config["model_type"].is_string()
             ? config["model_type"].get<std::string>()
             : std::string();
}

}  // namespace

struct Tokenizer::State {
  rust::TokenizerHandle handle;
  std::unordered_map<int32_t, SpecialToken> special;
  nlohmann::json named;  // {"bos_token": …}
  std::string chat_template;
  std::string tool_use_template;
  std::string fingerprint;
  std::vector<std::filesystem::path> files;
  int64_t size = 0;

  // Built when the first text with a forged special token turns up: it doubles the vocabulary's memory.
  mutable std::once_flag literal_once;
  mutable rust::TokenizerHandle literal;
  mutable std::string marker;

  void build(const TokenizerFiles& files, const TokenizerPlan& plan);
  const FettleTokenizer* literal_tokenizer() const;
  [[nodiscard]] std::optional<int32_t> id(std::string_view token) const;
  [[nodiscard]] std::optional<int32_t> named_id(const char* name) const;
  [[nodiscard]] Span core(int32_t id, const Span& offsets, std::string_view text) const;
  [[nodiscard]] bool special_touches_user(const Encoding& encoding, const SegmentedText& text) const;
  [[nodiscard]] std::vector<Placement> template_tokens(const SegmentedText& text) const;
  [[nodiscard]] Surroundings surroundings() const;
  void append_literal(const SegmentedText& text, Span piece, Encoding& encoding) const;
};

void Tokenizer::State::build(const TokenizerFiles& from, const TokenizerPlan& plan) {
  const std::string& json = plan.built_json.empty() ? from.tokenizer_json : plan.built_json;
  const std::string patch = plan.patch.empty() ? std::string() : plan.patch.dump();
  const std::string where = from.name + (plan.built_json.empty() ? ": tokenizer.json" : ": tokenizer.model");
  const std::string hint = "check that the file was copied completely";
  FettleTokenizer* created = nullptr;
  rust::Buffer error;
  int32_t status =
      fettle_tokenizer_new(rust::data(json), json.size(), rust::data(patch), patch.size(), &created, error.out());
  rust::check(status, error, ExitCode::kData, where, hint);
  handle.reset(created);
  const std::string tokens = plan.tokens_to_add.dump();
  status = fettle_tokenizer_add_tokens(created, rust::data(tokens), tokens.size(), error.out());
  rust::check(status, error, ExitCode::kData, where, hint);
  rust::Buffer added;
  status = fettle_tokenizer_added_tokens(created, added.out(), error.out());
  rust::check(status, error, ExitCode::kData, where, hint);
  for (const auto& token : nlohmann::json::parse(added.string())) {
    if (token["special"].get<bool>()) {
      special[token["id"].get<int32_t>()] = {token["content"].get<std::string>(), token["normalized"].get<bool>(),
                                             token["lstrip"].get<bool>(), token["rstrip"].get<bool>()};
    }
  }
  size = fettle_tokenizer_size(created);
  named = plan.special_tokens;
  chat_template = plan.chat_template;
  tool_use_template = plan.tool_use_template;
}

Tokenizer::Surroundings Tokenizer::State::surroundings() const {
  Encoding bare;
  Encoding processed;
  append_encoded(handle.get(), "a", false, {0, 0}, bare);
  append_encoded(handle.get(), "a", true, {0, 0}, processed);
  const auto begin = processed.ids.begin();
  const auto end = processed.ids.end();
  const auto found = std::search(begin, end, bare.ids.begin(), bare.ids.end());
  if (found == end) {
    throw Error(ExitCode::kData, "the tokenizer's post-processor changes a text's own tokens",
                "use the model's original tokenizer.json");
  }
  return {{begin, found}, {found + static_cast<std::ptrdiff_t>(bare.ids.size()), end}};
}

const FettleTokenizer* Tokenizer::State::literal_tokenizer() const {
  std::call_once(literal_once, [this] {
    marker = make_marker();
    FettleTokenizer* created = nullptr;
    rust::Buffer error;
    const int32_t status =
        fettle_tokenizer_clone_literal(handle.get(), rust::data(marker), marker.size(), &created, error.out());
    rust::check(status, error, ExitCode::kInternal, "cannot copy the tokenizer");
    literal.reset(created);
  });
  return literal.get();
}

std::optional<int32_t> Tokenizer::State::id(std::string_view token) const {
  const int64_t found = fettle_tokenizer_id(handle.get(), rust::data(token), token.size());
  return found < 0 ? std::nullopt : std::optional(static_cast<int32_t>(found));
}

std::optional<int32_t> Tokenizer::State::named_id(const char* name) const {
  const auto found = named.find(name);
  return found == named.end() ? std::nullopt : id(found->get_ref<const std::string&>());
}

/// The part of `offsets` that spells special token `id`, without the white space that lstrip and rstrip swallow. Empty
/// if nothing there spells it, as when the unknown token stands for a character.
Span Tokenizer::State::core(int32_t id, const Span& offsets, std::string_view text) const {
  const SpecialToken& token = special.at(id);
  const size_t found = text.substr(0, offsets.end).find(token.content, offsets.begin);
  if (found != std::string_view::npos) {
    return {found, found + token.content.size()};
  }
  return token.normalized ? offsets : Span{offsets.begin, offsets.begin};
}

bool Tokenizer::State::special_touches_user(const Encoding& encoding, const SegmentedText& text) const {
  for (size_t i = 0; i < encoding.ids.size(); ++i) {
    if (special.contains(encoding.ids[i]) &&
        touches(core(encoding.ids[i], encoding.offsets[i], text.text), text.user)) {
      return true;
    }
  }
  return false;
}

/// The special tokens that stand wholly outside the user's ranges.
std::vector<Placement> Tokenizer::State::template_tokens(const SegmentedText& segmented) const {
  const std::string_view text = segmented.text;
  std::vector<Placement> placements;
  const auto scan = [&](size_t begin, size_t end) {
    Encoding gap;
    append_encoded(handle.get(), text.substr(begin, end - begin), false, {0, static_cast<int64_t>(begin)}, gap);
    for (size_t i = 0; i < gap.ids.size(); ++i) {
      const auto found = special.find(gap.ids[i]);
      Span span = found == special.end() ? Span{} : core(gap.ids[i], gap.offsets[i], text);
      if (span.begin == span.end) {
        continue;
      }
      const size_t floor = placements.empty() ? 0 : placements.back().span.end;
      while (found->second.lstrip && span.begin > floor && is_space(text[span.begin - 1])) {
        --span.begin;
      }
      while (found->second.rstrip && span.end < text.size() && is_space(text[span.end])) {
        ++span.end;
      }
      placements.push_back({gap.ids[i], span});
    }
  };
  size_t position = 0;
  for (const Span& user : segmented.user) {
    if (position < user.begin) {
      scan(position, user.begin);
    }
    position = user.end;
  }
  if (position < text.size()) {
    scan(position, text.size());
  }
  return placements;
}

/// Tokens of a piece in which no special token is read. A piece that is not the text's beginning is encoded after a
/// marker token, so that nothing that belongs to a beginning (Metaspace's prefix) is put before it.
void Tokenizer::State::append_literal(const SegmentedText& text, Span piece, Encoding& encoding) const {
  if (piece.begin >= piece.end) {
    return;
  }
  const FettleTokenizer* tokenizer = literal_tokenizer();
  const std::string_view view = std::string_view(text.text).substr(piece.begin, piece.end - piece.begin);
  if (piece.begin == 0) {
    append_encoded(tokenizer, view, false, {0, 0}, encoding);
    return;
  }
  const std::string marked = marker + std::string(view);
  append_encoded(tokenizer, marked, false, {1, static_cast<int64_t>(piece.begin) - static_cast<int64_t>(marker.size())},
                 encoding);
}

Tokenizer::Tokenizer(std::shared_ptr<const State> state) : state_(std::move(state)) {}

Tokenizer Tokenizer::from_files(const TokenizerFiles& files) {
  auto state = std::make_shared<State>();
  if (files.tokenizer_json.empty() && files.sentencepiece_model.empty()) {
    throw Error(ExitCode::kNoInput, files.name + ": neither tokenizer.json nor tokenizer.model",
                "give the folder of a tokenizer with tokenizer_name");
  }
  state->build(files, plan_tokenizer(files));
  Sha256 hash;
  for (const std::string* part :
       {&files.tokenizer_json, &files.sentencepiece_model, &files.tokenizer_config, &files.special_tokens_map,
        &files.added_tokens, &files.chat_template, &files.tool_use_template, &files.model_type}) {
    hash.update(fmt::format("{}:", part->size()));
    hash.update(*part);
  }
  state->fingerprint = hash.finish();
  return Tokenizer(std::move(state));
}

Tokenizer Tokenizer::load(const std::filesystem::path& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw Error(ExitCode::kNoInput, folder.string() + ": no such folder",
                "check tokenizer_name and model_name_or_path");
  }
  std::vector<std::filesystem::path> read;
  TokenizerFiles files;
  files.name = folder.string();
  files.tokenizer_json = read_content(folder / "tokenizer.json", read);
  files.sentencepiece_model = read_content(folder / "tokenizer.model", read);
  files.tokenizer_config = read_content(folder / "tokenizer_config.json", read);
  files.special_tokens_map = read_content(folder / "special_tokens_map.json", read);
  files.added_tokens = read_content(folder / "added_tokens.json", read);
  files.chat_template = read_if_exists(folder / "chat_template.jinja", read);
  files.tool_use_template = read_if_exists(folder / "additional_chat_templates/tool_use.jinja", read);
  files.model_type = model_type_of(folder);
  Tokenizer tokenizer = from_files(files);
  // The state is not shared with anybody yet.
  std::const_pointer_cast<State>(tokenizer.state_)->files = std::move(read);
  return tokenizer;
}

Encoding Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  Encoding encoding;
  append_encoded(state_->handle.get(), text, add_special_tokens, {0, 0}, encoding);
  return encoding;
}

Encoding Tokenizer::encode(const SegmentedText& text, bool add_special_tokens) const {
  Encoding plain = encode(std::string_view(text.text), add_special_tokens);
  if (text.user.empty() || !state_->special_touches_user(plain, text)) {
    return plain;
  }
  Encoding encoding;
  const auto [before, after] = add_special_tokens ? state_->surroundings() : Surroundings();
  encoding.ids = before;
  encoding.offsets.resize(before.size());
  size_t position = 0;
  for (const Placement& token : state_->template_tokens(text)) {
    state_->append_literal(text, {position, token.span.begin}, encoding);
    encoding.ids.push_back(token.id);
    encoding.offsets.push_back(token.span);
    position = token.span.end;
  }
  state_->append_literal(text, {position, text.text.size()}, encoding);
  encoding.ids.insert(encoding.ids.end(), after.begin(), after.end());
  encoding.offsets.resize(encoding.ids.size());
  return encoding;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  const auto negative = std::find_if(ids.begin(), ids.end(), [](int32_t id) { return id < 0; });
  if (negative != ids.end()) {
    throw Error(ExitCode::kData, fmt::format("cannot decode: {} is not a token id", *negative));
  }
  rust::Buffer text;
  rust::Buffer error;
  const int32_t status = fettle_tokenizer_decode(state_->handle.get(), reinterpret_cast<const uint32_t*>(ids.data()),
                                                 ids.size(), skip_special_tokens ? 1 : 0, text.out(), error.out());
  rust::check(status, error, ExitCode::kData, "cannot decode");
  return text.string();
}

std::string Tokenizer::token(int32_t id) const {
  rust::Buffer text;
  rust::Buffer error;
  const int32_t status =
      fettle_tokenizer_token(state_->handle.get(), static_cast<uint32_t>(id), text.out(), error.out());
  rust::check(status, error, ExitCode::kData, "the tokenizer");
  return text.string();
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  return state_->id(token);
}
int64_t Tokenizer::vocab_size() const {
  return state_->size;
}
bool Tokenizer::is_special(int32_t id) const {
  return state_->special.contains(id);
}
std::optional<int32_t> Tokenizer::bos_id() const {
  return state_->named_id("bos_token");
}
std::optional<int32_t> Tokenizer::eos_id() const {
  return state_->named_id("eos_token");
}
std::optional<int32_t> Tokenizer::pad_id() const {
  return state_->named_id("pad_token");
}
std::optional<int32_t> Tokenizer::unk_id() const {
  return state_->named_id("unk_token");
}
std::vector<std::string> Tokenizer::special_spellings() const {
  std::vector<std::string> spellings;
  for (const auto& [id, token] : state_->special) {
    if (!token.content.empty()) {
      spellings.push_back(token.content);
    }
  }
  return spellings;
}
const nlohmann::json& Tokenizer::special_tokens() const {
  return state_->named;
}
bool Tokenizer::has_chat_template() const {
  return !state_->chat_template.empty();
}
const std::string& Tokenizer::chat_template() const {
  return state_->chat_template;
}
const std::string& Tokenizer::tool_use_template() const {
  return state_->tool_use_template;
}
Tokenizer::Surroundings Tokenizer::surroundings() const {
  return state_->surroundings();
}
std::string Tokenizer::json() const {
  rust::Buffer text;
  rust::Buffer error;
  rust::check(fettle_tokenizer_json(state_->handle.get(), text.out(), error.out()), error, ExitCode::kInternal,
              "cannot write the tokenizer");
  return text.string();
}
const std::vector<std::filesystem::path>& Tokenizer::files() const {
  return state_->files;
}
const std::string& Tokenizer::fingerprint() const {
  return state_->fingerprint;
}

}  // namespace fettle::text
