// SPDX-License-Identifier: Apache-2.0
/// Which bytes of a rendered conversation the assistant generates.
#pragma once

#include <vector>

#include "data/record.h"
#include "text/chat_template.h"

namespace fettle::data {

/// The range of each assistant turn in `full` = chat.render(messages, false, variables), in order: what follows the
/// generation prompt, up to and including the end-of-turn mark that the template writes.
///
/// A template with {% generation %} blocks says so itself. For any other, turn k begins where render(messages before
/// it, add_generation_prompt) ends and ends where render(messages up to it) ends, if those are prefixes of `full`.
/// Templates that write a turn differently once others follow (Qwen3 drops the reasoning of earlier turns) are not
/// prefix-preserving: there a probe word in place of a content shows what the template writes around it, and a turn
/// without one (a tool call) is found by the record's last text in it. Throws BadRecord where this gives no answer: a
/// wrong mask would be silent.
std::vector<text::Span> assistant_spans(const text::ChatTemplate& chat, const Record& messages, const Record& variables,
                                        const text::ChatTemplate::Rendered& full);

/// Where the target of a conversation begins whose first `prompt_messages` messages are the prompt: after what
/// render(prompt, add_generation_prompt) and `full` have in common, as TRL counts it.
size_t completion_begin(const text::ChatTemplate& chat, const Record& messages, size_t prompt_messages,
                        const Record& variables, const text::ChatTemplate::Rendered& full);

}  // namespace fettle::data
