// SPDX-License-Identifier: Apache-2.0
#include "config/split.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>

#include "base/error.h"
#include "base/utf8.h"

namespace fettle::config {
namespace {

constexpr std::string_view kNameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";

[[noreturn]] void fail(const std::string& text, const std::string& option) {
  const bool is_sum = text.find('+') != std::string::npos;
  throw Error(ExitCode::kUsage, fmt::format("{} = {} is not {}", option, quote(text), is_sum ? "one split" : "a split"),
              is_sum ? "give one split; several files go into train_file"
                     : "write train, train[:1000], train[100:200] or train[10%:20%]");
}

/// A bound and whether it is a percentage; nothing for an empty text. False for what is no bound.
bool read_bound(std::string_view text, std::optional<int64_t>& bound, bool& is_percent) {
  is_percent = text.ends_with('%');
  if (is_percent) text.remove_suffix(1);
  if (text.empty()) return !is_percent;
  int64_t value = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size()) return false;
  if (is_percent && std::abs(value) > 100) return false;
  bound = value;
  return true;
}

}  // namespace

SplitExpression parse_split(const std::string& text, const std::string& option) {
  SplitExpression split;
  split.text = text;
  const size_t bracket = text.find('[');
  split.name = text.substr(0, bracket);
  if (split.name.empty() || split.name.find_first_not_of(kNameCharacters) != std::string::npos) fail(text, option);
  if (bracket == std::string::npos) return split;
  const std::string_view inside = std::string_view(text).substr(bracket + 1);
  const size_t colon = inside.find(':');
  if (!inside.ends_with(']') || colon == std::string_view::npos) fail(text, option);
  bool from_is_percent = false;
  bool to_is_percent = false;
  if (!read_bound(inside.substr(0, colon), split.from, from_is_percent) ||
      !read_bound(inside.substr(colon + 1, inside.size() - colon - 2), split.to, to_is_percent) ||
      (split.from && split.to && from_is_percent != to_is_percent)) {
    fail(text, option);
  }
  split.is_percent = from_is_percent || to_is_percent;
  return split;
}

RecordRange records_of(const SplitExpression& split, int64_t records) {
  const auto place = [&](const std::optional<int64_t>& bound, int64_t otherwise) {
    if (!bound) return otherwise;
    int64_t value = *bound;
    if (split.is_percent) {
      value = std::llrint(static_cast<double>(value) * static_cast<double>(records) / 100.0);
    }
    if (value < 0) value = std::max<int64_t>(records + value, 0);
    return std::min(value, records);
  };
  RecordRange range{place(split.from, 0), place(split.to, records)};
  range.end = std::max(range.begin, range.end);
  return range;
}

}  // namespace fettle::config
