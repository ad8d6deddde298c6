// SPDX-License-Identifier: Apache-2.0
#include "data/preview.h"

#include <fmt/format.h>

#include <string_view>

#include "data/storage.h"

namespace fettle::data {
namespace {

constexpr std::string_view kTarget = "\x1b[32m";
constexpr std::string_view kContext = "\x1b[90m";
constexpr std::string_view kBold = "\x1b[1m";
constexpr std::string_view kReset = "\x1b[0m";

std::string visible(std::string_view text) {
  std::string shown;
  for (const char c : text) {
    if (c == '\n') {
      shown += "↵\n";
    } else if (c == '\t') {
      shown += "→\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      shown += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      shown += c;
    }
  }
  return shown;
}

}  // namespace

std::string preview(const TokenDataset& dataset, const text::Tokenizer& tokenizer, int64_t index) {
  const auto ids = dataset.input_ids(index);
  const auto labels = dataset.labels(index);
  std::string shown;
  // Runs of one kind are decoded together: a character may take several tokens, and spaces depend on their neighbours.
  for (size_t begin = 0; begin < ids.size();) {
    const bool target = labels[begin] != kIgnore;
    const bool special = tokenizer.is_special(ids[begin]);
    size_t end = begin + 1;
    while (end < ids.size() && !special && (labels[end] != kIgnore) == target && !tokenizer.is_special(ids[end])) ++end;
    shown += target ? kTarget : kContext;
    if (special) shown += kBold;
    shown += visible(tokenizer.decode(ids.subspan(begin, end - begin), false));
    shown += kReset;
    begin = end;
  }
  return shown + fmt::format("\n{}document {}: {} tokens, {} targets{}\n", kBold, index, ids.size(),
                             count_targets(labels), kReset);
}

}  // namespace fettle::data
