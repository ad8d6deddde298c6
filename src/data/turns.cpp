// SPDX-License-Identifier: Apache-2.0
#include "data/turns.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "base/error.h"

namespace fettle::data {
namespace {

using text::Span;

size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

/// Stands for a message's content: a word that no template changes.
constexpr const char* kProbe = "FettleProbeWord";
/// Put into a record's text it shows where that stands: a private-use character, which templates leave alone. A record
/// that has it itself only loses the help of it.
constexpr std::string_view kMark = "\U0010FFFD";
constexpr std::string_view kPythonWhite = " \t\n\v\f\r";

size_t trimmed_size(std::string_view text) {
  return text.find_last_not_of(kPythonWhite) + 1;
}

/// Where marks go in a message; the next is tried if the template writes something else for them than it wrote before.
enum class Marking {
  kEveryEnd,   ///< at the end of every string, before the white space there, which templates trim
  kFilledEnd,  ///< the same without blank strings, which a template may leave out
  kMiddle,     ///< in the middle of the content, whose ends a template may look at
};

/// Keys whose values templates compare or count the characters of.
bool is_structural(std::string_view key) {
  return key == "role" || key == "type" || key == "id" || key == "tool_call_id";
}

void mark_ends(Record& value, bool blank_too) {
  if (value.is_string()) {
    auto& text = value.get_ref<std::string&>();
    const size_t end = trimmed_size(text);
    if (end > 0 || blank_too) text.insert(end, kMark);
  } else if (value.is_object()) {
    for (auto& [key, item] : value.items()) {
      if (!is_structural(key)) mark_ends(item, blank_too);
    }
  } else if (value.is_array()) {
    for (auto& item : value) mark_ends(item, blank_too);
  }
}

/// Marks the middle of the content; the text that then follows the mark.
std::string mark_middle(Record& message) {
  Record& content = message["content"];
  if (!content.is_string()) return {};
  auto& text = content.get_ref<std::string&>();
  const size_t end = trimmed_size(text);
  size_t middle = end / 2;
  while (middle < end && (static_cast<unsigned char>(text[middle]) & 0xC0) == 0x80) ++middle;
  std::string rest = text.substr(middle, end - middle);
  text.insert(middle, kMark);
  return rest;
}

/// Takes the marks out of `text`; where the last of them stood.
std::optional<size_t> take_marks(std::string& text) {
  std::optional<size_t> last;
  for (size_t found = text.find(kMark); found != std::string::npos; found = text.find(kMark, found)) {
    text.erase(found, kMark.size());
    last = found;
  }
  return last;
}

class TurnFinder {
 public:
  TurnFinder(const text::ChatTemplate& chat, const Record& messages, const Record& variables, const std::string& full)
      : chat_(chat), messages_(messages), variables_(variables), full_(full) {}

  [[nodiscard]] std::vector<Span> find_all(const TurnChoice& choice) const {
    std::vector<Span> spans;
    for (size_t i = first_of(choice); i < messages_.size(); ++i) {
      if (!speaks(i)) continue;
      if (i == 0) {
        spans.push_back(first_turn());
        continue;
      }
      const std::string prompt = render(i, true);
      const size_t begin = begin_in_full(i, prompt);
      if (begin >= choice.before && !spans.empty()) break;
      const size_t end = end_in_full(i, prompt, begin);
      if (end < begin) fail(i, "the end");
      spans.push_back({begin, end});
    }
    return spans;
  }

  /// The byte of the full text where what message `index` and its successors generate begins.
  [[nodiscard]] size_t begin_of(size_t index) const { return begin_in_full(index, render(index, true)); }

 private:
  [[nodiscard]] bool speaks(size_t index) const { return messages_[index].value("role", "") == "assistant"; }

  /// The message to begin with.
  [[nodiscard]] size_t first_of(const TurnChoice& choice) const {
    if (!choice.last_only) return 0;
    size_t last = messages_.size();
    while (last > 0 && !speaks(last - 1)) --last;
    return last == 0 ? messages_.size() : last - 1;
  }

  [[nodiscard]] Record first_messages(size_t count) const {
    Record first = Record::array();
    first.insert(first.end(), messages_.begin(), messages_.begin() + static_cast<ptrdiff_t>(count));
    return first;
  }

  [[nodiscard]] std::string render(size_t count, bool add_generation_prompt) const {
    return chat_.render(first_messages(count), add_generation_prompt, variables_).text;
  }

  [[noreturn]] static void fail(size_t index, std::string_view what) {
    throw BadRecord("the chat template hides where an assistant turn begins or ends",
                    fmt::format("{} of message {}", what, index + 1));
  }

  /// Where the last of the record's text in message `index` ends in `text`, the rendering of the first `count`
  /// messages.
  [[nodiscard]] std::optional<size_t> text_end(size_t index, size_t count, bool add_generation_prompt,
                                               const std::string& text) const {
    for (const Marking marking : {Marking::kEveryEnd, Marking::kFilledEnd, Marking::kMiddle}) {
      Record messages = first_messages(count);
      std::string rest;
      if (marking == Marking::kMiddle) {
        rest = mark_middle(messages[index]);
      } else {
        mark_ends(messages[index], marking == Marking::kEveryEnd);
      }
      try {
        std::string marked = chat_.render(messages, add_generation_prompt, variables_).text;
        const auto mark = take_marks(marked);
        if (mark && marked == text && text.compare(*mark, rest.size(), rest) == 0) return *mark + rest.size();
      } catch (const Error&) {
        continue;  // the template refuses marked text
      }
    }
    return std::nullopt;
  }

  /// Where turn `index` begins by the text of the message before it, and what the template writes from there to the
  /// turn.
  [[nodiscard]] std::optional<size_t> begin_by_text(size_t index, const std::string& prompt,
                                                    const std::string& before) const {
    const auto in_full = text_end(index - 1, messages_.size(), false, full_);
    const auto in_prompt = in_full ? text_end(index - 1, index, true, prompt) : std::nullopt;
    const auto in_before = in_prompt ? text_end(index - 1, index, false, before) : std::nullopt;
    if (!in_before) return std::nullopt;
    const std::string_view tail = std::string_view(prompt).substr(*in_prompt);
    const size_t agreed = common_prefix(tail, std::string_view(full_).substr(*in_full));
    if (agreed < std::min(tail.size(), before.size() - *in_before + 1)) return std::nullopt;
    return *in_full + agreed;
  }

  /// Where turn `index`, which `prompt` asks for, begins. Generation prompts may end in something that the finished
  /// turn lacks (an opened <think>): then the turn begins where the two part, within the generation prompt.
  [[nodiscard]] size_t begin_in_full(size_t index, const std::string& prompt) const {
    if (full_.starts_with(prompt)) return prompt.size();
    const std::string before = render(index, false);
    if (prompt.starts_with(before)) {
      const size_t agreed = common_prefix(prompt, full_);
      if (agreed > before.size()) return agreed;
    }
    const auto begin = begin_by_text(index, prompt, before);
    if (!begin) fail(index, "the beginning");
    return *begin;
  }

  [[nodiscard]] size_t end_in_full(size_t index, const std::string& prompt, size_t begin) const {
    const std::string_view rest = std::string_view(full_).substr(begin);
    if (index + 1 == messages_.size()) return full_.size();
    const std::string through = render(index + 1, false);
    if (full_.starts_with(through)) return through.size();
    if (through.size() > prompt.size() && through.starts_with(prompt)) {
      const std::string_view turn = std::string_view(through).substr(prompt.size());
      if (rest.starts_with(turn)) return begin + turn.size();
    }
    const auto in_full = text_end(index, messages_.size(), false, full_);
    const auto in_through = in_full ? text_end(index, index + 1, false, through) : std::nullopt;
    if (!in_through) fail(index, "the end");
    const std::string_view tail = std::string_view(through).substr(*in_through);
    if (!std::string_view(full_).substr(*in_full).starts_with(tail)) fail(index, "the end");
    return *in_full + tail.size();
  }

  /// An assistant who speaks first has no prompt to generate from: the header that the template writes is not a target.
  [[nodiscard]] Span first_turn() const {
    Record first = first_messages(1);
    first[0]["content"] = kProbe;
    const std::string probed = chat_.render(first, false, variables_).text;
    const size_t begin = probed.find(kProbe);
    const bool once = begin != std::string::npos && probed.find(kProbe, begin + 1) == std::string::npos;
    if (!once || !full_.starts_with(std::string_view(probed).substr(0, begin))) fail(0, "the beginning");
    const std::string through = render(1, false);
    if (!full_.starts_with(through) || through.size() < begin) fail(0, "the end");
    return {begin, through.size()};
  }

  const text::ChatTemplate& chat_;
  const Record& messages_;
  const Record& variables_;
  const std::string& full_;
};

}  // namespace

std::vector<Span> assistant_spans(const text::ChatTemplate& chat, const Record& messages, const Record& variables,
                                  const text::ChatTemplate::Rendered& full, const TurnChoice& choice) {
  if (!chat.marks_generation()) return TurnFinder(chat, messages, variables, full.text).find_all(choice);
  if (choice.last_only && !full.generation.empty()) return {full.generation.back()};
  return full.generation;
}

size_t completion_begin(const text::ChatTemplate& chat, const Record& messages, size_t prompt_messages,
                        const Record& variables, const text::ChatTemplate::Rendered& full) {
  return TurnFinder(chat, messages, variables, full.text).begin_of(prompt_messages);
}

}  // namespace fettle::data
