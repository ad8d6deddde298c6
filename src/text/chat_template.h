// SPDX-License-Identifier: Apache-2.0
/// Chat templates (Jinja), rendered as transformers' apply_chat_template renders them.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace fettle::text {

/// JSON objects that keep the order of their keys, as Python's dictionaries do: `tojson` prints it.
using OrderedJson = nlohmann::ordered_json;

/// A compiled template. Immutable, cheap to copy; render may be called from many threads at once.
class ChatTemplate {
 public:
  /// `special_tokens`: Tokenizer::special_tokens(). `spellings`: Tokenizer::special_spellings(), which the template
  /// sees in a record's text as one character each, and Rendered::user reports. `date`: what strftime_now says it is,
  /// YYYY-MM-DD; empty: the time of each call. Throws Error{kConfig} with the line for a syntax error.
  ChatTemplate(std::string source, const nlohmann::json& special_tokens, const std::vector<std::string>& spellings = {},
               const std::string& date = {});

  struct Rendered {
    std::string text;
    /// Byte ranges in which text from the record (values and keys of messages, tools and every other variable) spells a
    /// special token. Text that spells one only together with the template's own text (<|{{ role }}|>) is not there:
    /// it is the template's doing, and special as in transformers.
    std::vector<Span> user;
    /// Byte ranges of the {% generation %} blocks; empty if the template has none.
    std::vector<Span> generation;
  };

  /// messages: [{"role", "content", …}]; extra: tools, documents and any other variable, each a key. Throws
  /// Error{kData} with the template's own words if it calls raise_exception or fails on these messages.
  [[nodiscard]] Rendered render(const OrderedJson& messages, bool add_generation_prompt,
                                const OrderedJson& extra = OrderedJson::object()) const;

  /// True if the template has {% generation %} blocks.
  [[nodiscard]] bool marks_generation() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace fettle::text
