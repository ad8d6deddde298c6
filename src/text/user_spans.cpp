// SPDX-License-Identifier: Apache-2.0
#include "text/user_spans.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace fettle::text {
namespace {

constexpr std::string_view kSpace = " \t\n\v\f\r";

std::string utf8(char32_t code) {
  std::string bytes;
  if (code < 0x10000) {
    bytes += static_cast<char>(0xe0 | (code >> 12));
  } else {
    bytes += static_cast<char>(0xf0 | (code >> 18));
    bytes += static_cast<char>(0x80 | ((code >> 12) & 0x3f));
  }
  bytes += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
  bytes += static_cast<char>(0x80 | (code & 0x3f));
  return bytes;
}

/// The string without the white space at its ends; templates trim with Python's strip, but only ASCII matters here.
Span core_of(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) {
    return {0, 0};
  }
  return {begin, text.find_last_not_of(kSpace) + 1};
}

bool is_structural(std::string_view key) {
  return key == "role" || key == "type";
}

void collect(const OrderedJson& value, std::vector<std::string_view>& strings) {
  if (value.is_string()) {
    strings.push_back(value.get_ref<const std::string&>());
  } else if (value.is_structured()) {
    for (const auto& [key, item] : value.items()) {
      if (!value.is_object() || !is_structural(key) || !item.is_string()) {
        collect(item, strings);
      }
    }
  }
}

/// Adds every occurrence of `part` in `text`; false if there is none.
bool add_occurrences(std::string_view text, std::string_view part, std::vector<Span>& spans) {
  bool found = false;
  for (size_t at = part.empty() ? std::string_view::npos : text.find(part); at != std::string_view::npos;
       at = text.find(part, at + part.size())) {
    spans.push_back({at, at + part.size()});
    found = true;
  }
  return found;
}

/// Adds the occurrences of every <…> and […] of `string` that has no white space inside.
void add_bracketed(std::string_view text, std::string_view string, std::vector<Span>& spans) {
  for (size_t begin = string.find_first_of("<["); begin != std::string_view::npos;
       begin = string.find_first_of("<[", begin + 1)) {
    const char close = string[begin] == '<' ? '>' : ']';
    const size_t end = string.find_first_of(std::string(kSpace) + close, begin);
    if (end != std::string_view::npos && string[end] == close) {
      add_occurrences(text, string.substr(begin, end + 1 - begin), spans);
    }
  }
}

void add_string(std::string_view text, std::string_view string, std::vector<Span>& spans) {
  add_bracketed(text, string, spans);
  const Span core = core_of(string);
  string = string.substr(core.begin, core.end - core.begin);
  if (add_occurrences(text, string, spans)) {
    return;
  }
  while (!string.empty()) {
    const size_t end = std::min(string.find('\n'), string.size());
    const Span line = core_of(string.substr(0, end));
    add_occurrences(text, string.substr(line.begin, line.end - line.begin), spans);
    string.remove_prefix(std::min(end + 1, string.size()));
  }
}

std::vector<Span> merge(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  std::vector<Span> merged;
  for (const Span& span : spans) {
    if (!merged.empty() && span.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, span.end);
    } else {
      merged.push_back(span);
    }
  }
  return merged;
}

}  // namespace

Marks choose_marks(std::string_view texts) {
  std::vector<std::string> free;
  for (const auto& [first, last] : {std::pair<char32_t, char32_t>{0xfdd0, 0xfdef}, {0xf0000, 0xffffd}}) {
    for (char32_t code = first; code <= last && free.size() < 2; ++code) {
      if (std::string mark = utf8(code); texts.find(mark) == std::string_view::npos) {
        free.push_back(std::move(mark));
      }
    }
  }
  if (free.size() < 2) {
    throw Error(ExitCode::kData, "a record uses every private-use character of Unicode");
  }
  return {free[0], free[1]};
}

OrderedJson mark_strings(const OrderedJson& value, const Marks& marks) {
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    const Span core = core_of(text);
    if (core.begin == core.end) {
      return value;
    }
    return text.substr(0, core.begin) + marks.begin + text.substr(core.begin, core.end - core.begin) + marks.end +
           text.substr(core.end);
  }
  OrderedJson copy = value;
  if (value.is_array()) {
    for (auto& item : copy) {
      item = mark_strings(item, marks);
    }
  } else if (value.is_object()) {
    for (auto& [key, item] : copy.items()) {
      if (!is_structural(key) || !item.is_string()) {
        item = mark_strings(item, marks);
      }
    }
  }
  return copy;
}

Unmarked remove_marks(std::string_view text, const Marks& marks) {
  Unmarked result;
  result.text.reserve(text.size());
  bool open = false;
  size_t position = 0;
  while (position < text.size()) {
    const std::string_view rest = text.substr(position);
    const bool begins = rest.starts_with(marks.begin);
    if (!begins && !rest.starts_with(marks.end)) {
      result.text += text[position++];
      continue;
    }
    result.balanced = result.balanced && begins != open;
    if (begins) {
      result.spans.push_back({result.text.size(), result.text.size()});
    } else if (!result.spans.empty()) {
      result.spans.back().end = result.text.size();
    }
    open = begins;
    position += begins ? marks.begin.size() : marks.end.size();
  }
  result.balanced = result.balanced && !open;
  return result;
}

std::vector<Span> search_strings(std::string_view text, const std::vector<OrderedJson>& sources) {
  std::vector<std::string_view> strings;
  for (const auto& source : sources) {
    collect(source, strings);
  }
  std::vector<Span> spans;
  for (const std::string_view string : strings) {
    add_string(text, string, spans);
  }
  return merge(std::move(spans));
}

}  // namespace fettle::text
