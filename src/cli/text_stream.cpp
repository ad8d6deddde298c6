// SPDX-License-Identifier: Apache-2.0
#include "cli/text_stream.h"

#include <span>

namespace fettle::cli {
namespace {

constexpr std::string_view kIncomplete = "\xEF\xBF\xBD";  // U+FFFD: what decoding gives for half a character

/// A byte of SentencePiece's byte fallback, "<0x0A>". A run of them is decoded as a whole: one byte that fits no
/// character turns all of them into U+FFFD, so the text of a run is known only at its end.
bool is_byte(std::string_view token) {
  return token.size() == 6 && token.starts_with("<0x") && token.ends_with('>');
}

}  // namespace

std::string TextStream::pending() const {
  const std::span<const int32_t> tokens = tokens_;
  const std::string before = tokenizer_.decode(tokens.subspan(context_, given_ - context_), true);
  const std::string with = tokenizer_.decode(tokens.subspan(context_), true);
  return with.size() > before.size() ? with.substr(before.size()) : std::string();
}

std::string TextStream::add(int32_t token) {
  tokens_.push_back(token);
  if (is_byte(tokenizer_.token(token))) return {};
  std::string text = pending();
  if (text.empty() || text.ends_with(kIncomplete)) return {};
  context_ = given_;
  given_ = tokens_.size();
  return text;
}

std::string TextStream::finish() {
  std::string text = pending();
  given_ = context_ = tokens_.size();
  return text;
}

}  // namespace fettle::cli
