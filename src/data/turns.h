// SPDX-License-Identifier: Apache-2.0
/// Which bytes of a rendered conversation the assistant generates.
#pragma once

#include <string>
#include <vector>

#include "data/record.h"
#include "text/chat_template.h"

namespace fettle::data {

/// Which turns are asked for.
struct TurnChoice {
  bool last_only = false;
  size_t before = std::string::npos;  ///< turns that begin at this byte or later may be left out, but not all of them
};

/// The range of each assistant turn in `full` = chat.render(messages, false, variables), in order: what follows the
/// generation prompt, up to and including the end-of-turn mark that the template writes.
///
/// A template with {% generation %} blocks says so itself. For any other, turn k begins where render(messages before
/// it, add_generation_prompt) ends and ends where render(messages up to it) ends, if those are prefixes of `full`.
/// Templates that write a turn differently once others follow (Qwen3 drops the reasoning of earlier turns) are not
/// prefix-preserving: there a mark in the record's text shows where that ends, and what the template writes after it in
/// the prefix must stand there in `full` as well. Throws BadRecord where this gives no answer: a wrong mask would be
/// silent.
std::vector<text::Span> assistant_spans(const text::ChatTemplate& chat, const Record& messages, const Record& variables,
                                        const text::ChatTemplate::Rendered& full, const TurnChoice& choice = {});

/// Where the target of a conversation begins whose first `prompt_messages` messages are the prompt: after what
/// render(prompt, add_generation_prompt) and `full` have in common, as TRL counts it.
size_t completion_begin(const text::ChatTemplate& chat, const Record& messages, size_t prompt_messages,
                        const Record& variables, const text::ChatTemplate::Rendered& full);

}  // namespace fettle::data
