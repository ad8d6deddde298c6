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
using Rendered = text::ChatTemplate::Rendered;

std::string_view slice(const std::string& text, Span span) {
  return std::string_view(text).substr(span.begin, span.end - span.begin);
}

size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

/// Stands for a message's content: a word that no template changes.
constexpr const char* kProbe = "FettleProbeWord";

struct Sides {
  std::string before;
  std::string after;
};

/// What stands around the probe; none unless it stands there once.
std::optional<Sides> around_probe(const std::string& text) {
  const std::string_view probe = kProbe;
  const size_t found = text.find(probe);
  if (found == std::string::npos || text.find(probe, found + 1) != std::string::npos) return std::nullopt;
  return Sides{text.substr(0, found), text.substr(found + probe.size())};
}

/// Where in `full` what `part` ends with ends too, by the last text that a record gave to `part` and by `tail`, what
/// the template wrote after it: after the first of the `candidates` record texts of `full` from `from` on that ends the
/// same and is followed by the tail. Only the first `needed` bytes of the tail must be there; more counts as far as it
/// agrees.
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
      const std::string_view text = slice(full.text, span);
      if (!last.ends_with(text) && !text.ends_with(last)) continue;
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
  [[nodiscard]] size_t begin_of(size_t index) const { return begin_in(index, render(index, true), full_); }

 private:
  Rendered render(size_t count, bool add_generation_prompt) const {
    Record first = Record::array();
    first.insert(first.end(), messages_.begin(), messages_.begin() + static_cast<ptrdiff_t>(count));
    return chat_.render(first, add_generation_prompt, variables_);
  }

  /// The first `count` messages with the probe for the content of message `index`.
  std::optional<Sides> probe(size_t index, size_t count, bool add_generation_prompt) const {
    Record first = Record::array();
    first.insert(first.end(), messages_.begin(), messages_.begin() + static_cast<ptrdiff_t>(count));
    first[index]["content"] = kProbe;
    return around_probe(chat_.render(first, add_generation_prompt, variables_).text);
  }

  [[noreturn]] static void fail(size_t index, std::string_view what) {
    throw BadRecord("the chat template hides where an assistant turn begins or ends",
                    fmt::format("{} of message {}", what, index + 1));
  }

  /// Where the content of message `index` ends in the full text: between what stands around it whatever it is.
  std::optional<size_t> content_end(size_t index) const {
    const auto sides = probe(index, messages_.size(), false);
    if (!sides || sides->before.size() + sides->after.size() > full_.text.size()) return std::nullopt;
    if (!full_.text.starts_with(sides->before) || !full_.text.ends_with(sides->after)) return std::nullopt;
    return full_.text.size() - sides->after.size();
  }

  /// `begin_in` the full text by the content of the message before the turn.
  std::optional<size_t> begin_by_probe(size_t index) const {
    const auto content = content_end(index - 1);
    const auto prompt = probe(index - 1, index, true);
    const auto before = probe(index - 1, index, false);
    if (!content || !prompt || !before) return std::nullopt;
    const size_t agreed = common_prefix(prompt->after, std::string_view(full_.text).substr(*content));
    if (agreed < std::min(prompt->after.size(), before->after.size() + 1)) return std::nullopt;
    return *content + agreed;
  }

  /// Where turn `index` begins in `text`, which goes on from its prompt. Generation prompts may end in something that
  /// the finished turn lacks (an opened <think>): then the turn begins where the two part, within the generation
  /// prompt.
  size_t begin_in(size_t index, const Rendered& prompt, const Rendered& text) const {
    if (text.text.starts_with(prompt.text)) return prompt.text.size();
    const Rendered before = render(index, false);
    if (prompt.text.starts_with(before.text)) {
      const size_t agreed = common_prefix(prompt.text, text.text);
      if (agreed > before.text.size()) return agreed;
    }
    const bool in_full = &text == &full_;
    if (in_full) {
      if (const auto begin = begin_by_probe(index)) return *begin;
    }
    const bool same_spans = !before.user.empty() && !prompt.user.empty() && before.user.back() == prompt.user.back();
    if (!same_spans) fail(index, "the beginning");
    const size_t needed = before.text.size() - before.user.back().end + 1;
    const auto begin = Boundary{prompt, text, in_full ? previous_end_ : 0, text.user.size(), needed}.find();
    if (!begin) fail(index, "the beginning");
    return *begin;
  }

  std::optional<size_t> end_by_probe(size_t index) const {
    const auto content = content_end(index);
    const auto turn = probe(index, index + 1, false);
    if (!content || !turn) return std::nullopt;
    if (!std::string_view(full_.text).substr(*content).starts_with(turn->after)) return std::nullopt;
    return *content + turn->after.size();
  }

  /// The end by the last text of the record in the turn: a tool call need not have a content.
  std::optional<size_t> end_by_text(size_t index, const Rendered& prompt, const Rendered& through, size_t begin) const {
    const size_t begin_through = begin_in(index, prompt, through);
    const std::string_view turn = std::string_view(through.text).substr(begin_through);
    if (std::string_view(full_.text).substr(begin).starts_with(turn)) return begin + turn.size();
    const auto own = std::count_if(through.user.begin(), through.user.end(),
                                   [&](const Span& span) { return span.begin >= begin_through; });
    return Boundary{through, full_, begin, static_cast<size_t>(own), std::string::npos}.find();
  }

  Span find(size_t index) const {
    const Rendered through = index + 1 == messages_.size() ? full_ : render(index + 1, false);
    if (index == 0) return first_turn(through);
    const Rendered prompt = render(index, true);
    const size_t begin = begin_in(index, prompt, full_);
    if (full_.text.starts_with(through.text)) return checked(index, {begin, through.text.size()});
    auto end = end_by_probe(index);
    if (!end) end = end_by_text(index, prompt, through, begin);
    if (!end) fail(index, "the end");
    return checked(index, {begin, *end});
  }

  /// An assistant who speaks first has no prompt to generate from: the header that the template writes is not a target.
  Span first_turn(const Rendered& through) const {
    const auto sides = probe(0, 1, false);
    if (!sides || !full_.text.starts_with(sides->before)) fail(0, "the beginning");
    if (!full_.text.starts_with(through.text)) fail(0, "the end");
    return checked(0, {sides->before.size(), through.text.size()});
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
