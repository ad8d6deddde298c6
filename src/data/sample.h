// SPDX-License-Identifier: Apache-2.0
/// What a record asks the model to learn, whatever columns it came in.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "data/example.h"
#include "data/record.h"

namespace fettle::data {

/// An instruction, what it is about (may be empty) and the answer.
struct Instruction {
  std::string instruction;
  std::string input;
  std::string output;
};

/// A text and how it goes on.
struct PromptCompletion {
  std::string prompt;
  std::string completion;
};

/// A conversation: messages as chat templates take them ("role", "content", "tool_calls" …).
struct Conversation {
  Record messages = Record::array();
  Record variables = Record::object();  ///< for the template: "tools", and the record's chat_template_kwargs
  size_t prompt_messages = 0;           ///< > 0: that many messages are the prompt and all that follows is the target
};

/// Plain text, all of it a target.
struct Text {
  std::string text;
};

/// `Example` stands for a record that is tokenized already.
using Sample = std::variant<Instruction, PromptCompletion, Conversation, Text, Example>;

}  // namespace fettle::data
