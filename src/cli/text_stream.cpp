// SPDX-License-Identifier: Apache-2.0
#include "cli/text_stream.h"

#include <span>

namespace fettle::cli {
namespace {

constexpr std::string_view kIncomplete = "\xEF\xBF\xBD";  // U+FFFD: what decoding gives for half a character

}  // namespace

std::string TextStream::pending() const {
  const std::span<const int32_t> tokens = tokens_;
  const std::string before = tokenizer_.decode(tokens.subspan(context_, given_ - context_), true);
  const std::string with = tokenizer_.decode(tokens.subspan(context_), true);
  return with.size() > before.size() ? with.substr(before.size()) : std::string();
}

std::string TextStream::add(int32_t token) {
  tokens_.push_back(token);
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
