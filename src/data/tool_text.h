// SPDX-License-Identifier: Apache-2.0
/// Tool calls for chat templates that know none.
#pragma once

#include "data/record.h"
#include "text/chat_template.h"

namespace fettle::data {

/// Whether the template writes an assistant message's tool_calls. Many do not, and would train an empty answer. One
/// that refuses a plausible call counts as showing them: what it wants is between it and the record.
bool shows_tool_calls(const text::ChatTemplate& chat);

/// The messages with each tool_calls moved into the content, one call a line: {"name": …, "arguments": …}.
Record with_tool_calls_as_text(const Record& messages);

}  // namespace fettle::data
