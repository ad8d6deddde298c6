// SPDX-License-Identifier: Apache-2.0
/// Prompt templates: from a sample to tokens and targets, as TRL's SFTTrainer makes them from the same record.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "data/example.h"
#include "data/sample.h"
#include "data/turns.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace fettle::data {

/// How a sample becomes text:
///  - text: its text + EOS, all of it a target. The template does not apply.
///  - prompt and completion: concatenated as they are + EOS, unless a template is asked for by name; then as below.
///  - instruction: `alpaca` (Stanford's text), `llama2`, `chat` and a Jinja file (a user message
///  "instruction\n\ninput", answered by the
///    assistant), `none` (instruction, blank line and input, then the output at once).
///  - conversation: the chat template, or the tokenizer's tool_use template if there are tools; every assistant turn is
///  a target, or the last one (mask_history).
/// `auto` is `chat` if the tokenizer has a chat template, else `alpaca`.
///
/// What spells a special token or a template in text from records stays ordinary text.
/// Immutable; `build` may be called from many threads.
class PromptBuilder {
 public:
  /// Throws Error: kUsage (a template that is neither known nor a file), kConfig (chat without a chat template, llama2
  /// without BOS or EOS), kNoInput (the Jinja file is missing).
  PromptBuilder(const config::DataConfig& config, text::Tokenizer tokenizer);

  /// Not truncated. Throws BadRecord (kinds: "empty", "empty answer", "no assistant turn", what a chat template
  /// refuses, ids that the tokenizer does not have), Error{kConfig} where the template does not fit the format.
  [[nodiscard]] Example build(const Sample& sample) const;

  /// What comes before the answer to `user`, with `system` before it if not empty.
  [[nodiscard]] std::vector<int32_t> generation_prompt(const std::string& user, const std::string& system) const;

  /// The messages that come before the first of a user's: a system message, or none. `system`: as generation_prompt.
  [[nodiscard]] Record opening(const std::string& system) const;

  /// What comes before the assistant's next message after `messages` (role, content). Throws Error{kConfig} as
  /// require_chat_template, {kData} with the template's own words for messages that it refuses.
  [[nodiscard]] std::vector<int32_t> chat_prompt(const Record& messages) const;

  /// "alpaca", "chat" …: what auto became.
  [[nodiscard]] const std::string& template_name() const { return name_; }

  /// Whether the end mark of a document (EOS, end of turn) is its last target, but for white space that follows it.
  [[nodiscard]] bool ends_with_mark(const Example& example) const;

  /// What decides the tokens beside the options and the tokenizer: the source of the Jinja template in use.
  [[nodiscard]] const std::string& template_source() const { return source_; }

  /// The day, YYYY-MM-DD, that a template which asks for the time is given; empty if the template does not ask.
  [[nodiscard]] const std::string& template_date() const { return date_; }

  /// Samples whose text spells the EOS token somewhere inside; it is kept as ordinary text.
  [[nodiscard]] int64_t spelled_marks() const { return spelled_marks_; }

 private:
  [[nodiscard]] Example build(const Instruction& sample) const;
  [[nodiscard]] Example build(const PromptCompletion& sample) const;
  [[nodiscard]] Example build(const Conversation& sample) const;
  [[nodiscard]] Example build(const Text& sample) const;
  [[nodiscard]] Example build(const Example& sample) const;

  struct Chat {
    text::ChatTemplate chat;
    bool shows_calls;  // of tools
  };
  [[nodiscard]] Chat make_chat(const std::string& source) const;
  [[nodiscard]] const Chat& chat_for(const Record& variables) const;
  /// The messages as the template can show them.
  [[nodiscard]] Record messages_for(const Chat& chat, const Record& messages) const;
  [[nodiscard]] text::Encoding encode(const text::ChatTemplate::Rendered& rendered) const;
  /// The turns that can be targets within max_seq_length.
  [[nodiscard]] TurnChoice turn_choice(const text::Encoding& encoding) const;

  /// prompt + completion + EOS; the completion begins where the tokens of the prompt alone and of all of it part.
  [[nodiscard]] Example encode_text(const text::SegmentedText& prompt, const std::string& completion) const;
  /// `system` empty: the sentence that the options set for a record with or without input, or the template's own.
  [[nodiscard]] Conversation instruction_conversation(const Instruction& sample, std::string system) const;
  [[nodiscard]] text::SegmentedText alpaca_prompt(const Instruction& sample, std::string system) const;
  void append_end(text::SegmentedText& text) const;
  void note_spelled_mark(const std::string& text) const;

  config::DataConfig config_;
  text::Tokenizer tokenizer_;
  std::string name_;
  std::string source_;
  std::string eos_;
  std::string date_;
  std::optional<Chat> chat_;
  std::optional<Chat> tool_chat_;  // for records with tools; none: chat_
  mutable std::once_flag calls_as_text_;
  mutable std::atomic<int64_t> spelled_marks_ = 0;
};

/// Throws Error{kConfig} where the template that is asked for, or that the tokenizer has, shows no conversations.
void require_chat_template(const config::DataConfig& config, const text::Tokenizer& tokenizer);

}  // namespace fettle::data
