// SPDX-License-Identifier: Apache-2.0
#include "data/turns.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "data/utf8.h"

namespace fettle::data {
namespace {

using text::Span;
using Rendered = text::ChatTemplate::Rendered;

std::string_view slice(const std::string& text, Span span) {
  return std::string_view(text).substr(span.begin, span.end - span.begin);
}

size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

/// `part` ends at some place of its own text; where is that place in `full`? Found by the last text that a record gave
/// to `part` and what the template wrote after it, `tail`: the first of the `candidates` spans of `full` from `from` on
/// that reads the same and is followed by the same. Only the first `needed` bytes of the tail must be there; more of it
/// counts as far as it agrees.
struct Boundary {
  const Rendered& part;
  const Rendered& full;
  size_t from;
  size_t candidates;
  size_t needed;

  [[nodiscard]] std::optional<size_t> find() const {
    if (part.user.empty()) return std::nullopt;
    const std::string_view last = slice(part.text, part.user.back());
    const std::string_view tail = std::string_view(part.text).substr(part.user.back().end);
    size_t left = candidates;
    for (const Span& span : full.user) {
      if (span.begin < from) continue;
      if (left-- == 0) break;
      if (slice(full.text, span) != last) continue;
      const size_t agreed = common_prefix(tail, std::string_view(full.text).substr(span.end));
      if (agreed >= std::min(needed, tail.size())) return span.end + agreed;
    }
    return std::nullopt;
  }
};

class TurnFinder {
 public:
  TurnFinder(const text::ChatTemplate& chat, const Record& messages, const Record& variables, const Rendered& full)
      : chat_(chat), messages_(messages), variables_(variables), full_(full) {}

  std::vector<Span> find_all() {
    std::vector<Span> spans;
    for (size_t i = 0; i < messages_.size(); ++i) {
      if (messages_[i].value("role", "") != "assistant") continue;
      const Span span = find(i);
      spans.push_back(span);
      previous_end_ = span.end;
    }
    return spans;
  }

  /// The byte of `full` where what message `index` and its successors generate begins.
  size_t begin_of(size_t index) const {
    if (index == 0) return full_.user.empty() ? full_.text.size() : full_.user.front().begin;
    return begin_in(index, render(index, true), full_, previous_end_);
  }

 private:
  Rendered render(size_t count, bool add_generation_prompt) const {
    Record first = Record::array();
    first.insert(first.end(), messages_.begin(), messages_.begin() + static_cast<ptrdiff_t>(count));
    return chat_.render(first, add_generation_prompt, variables_);
  }

  [[noreturn]] static void fail(size_t index, std::string_view what) {
    throw BadRecord("the chat template hides where an assistant turn begins or ends",
                    fmt::format("{} of message {}", what, index + 1));
  }

  /// Where turn `index` begins in `text`, which goes on from its prompt. Generation prompts may end in something that
  /// the finished turn lacks (an opened <think>): then the turn begins where the two part, within the generation
  /// prompt.
  size_t begin_in(size_t index, const Rendered& prompt, const Rendered& text, size_t from) const {
    if (text.text.starts_with(prompt.text)) return prompt.text.size();
    const Rendered before = render(index, false);
    if (prompt.text.starts_with(before.text)) {
      const size_t agreed = common_prefix(prompt.text, text.text);
      if (agreed > before.text.size()) return agreed;
    }
    const bool same_spans = !before.user.empty() && !prompt.user.empty() && before.user.back() == prompt.user.back();
    if (!same_spans) fail(index, "the beginning");
    const size_t needed = before.text.size() - before.user.back().end + 1;
    const auto begin = Boundary{prompt, text, from, text.user.size(), needed}.find();
    if (!begin) fail(index, "the beginning");
    return *begin;
  }

  Span find(size_t index) const {
    const Rendered through = index + 1 == messages_.size() ? full_ : render(index + 1, false);
    if (index == 0) return first_turn(through);
    const Rendered prompt = render(index, true);
    const size_t begin = begin_in(index, prompt, full_, previous_end_);
    if (full_.text.starts_with(through.text)) return checked(index, {begin, through.text.size()});
    const size_t begin_through = begin_in(index, prompt, through, 0);
    const std::string_view turn = std::string_view(through.text).substr(begin_through);
    if (std::string_view(full_.text).substr(begin).starts_with(turn)) return {begin, begin + turn.size()};
    const auto own = std::count_if(through.user.begin(), through.user.end(),
                                   [&](const Span& span) { return span.begin >= begin_through; });
    const auto end = own == 0 ? end_of_empty(turn, begin)
                              : Boundary{through, full_, begin, static_cast<size_t>(own), std::string::npos}.find();
    if (!end) fail(index, "the end");
    return checked(index, {begin, *end});
  }

  /// The end of a turn without any text of the record, of which `turn` is a rendering that may open with more.
  [[nodiscard]] std::optional<size_t> end_of_empty(std::string_view turn, size_t begin) const {
    const std::string_view rest = std::string_view(full_.text).substr(begin);
    for (; !is_blank(turn); turn.remove_prefix(1)) {
      if (rest.starts_with(turn)) return begin + turn.size();
    }
    return std::nullopt;
  }

  /// An assistant who speaks first has no prompt to generate from: the header that the template writes is not a target.
  [[nodiscard]] Span first_turn(const Rendered& through) const {
    if (!full_.text.starts_with(through.text) || through.user.empty()) fail(0, "the end");
    return {through.user.front().begin, through.text.size()};
  }

  [[nodiscard]] static Span checked(size_t index, Span span) {
    if (span.end < span.begin) fail(index, "the end");
    return span;
  }

  const text::ChatTemplate& chat_;
  const Record& messages_;
  const Record& variables_;
  const Rendered& full_;
  size_t previous_end_ = 0;
};

}  // namespace

std::vector<Span> assistant_spans(const text::ChatTemplate& chat, const Record& messages, const Record& variables,
                                  const Rendered& full) {
  if (chat.marks_generation()) return full.generation;
  return TurnFinder(chat, messages, variables, full).find_all();
}

size_t completion_begin(const text::ChatTemplate& chat, const Record& messages, size_t prompt_messages,
                        const Record& variables, const Rendered& full) {
  return TurnFinder(chat, messages, variables, full).begin_of(prompt_messages);
}

}  // namespace fettle::data
