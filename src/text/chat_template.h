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
  /// `special_tokens`: Tokenizer::special_tokens(). Throws Error{kConfig} with the line for a syntax error.
  ChatTemplate(std::string source, const nlohmann::json& special_tokens);

  struct Rendered {
    std::string text;
    /// Byte ranges that came from the records: the strings of messages, tools and documents (role and type excepted),
    /// without the white space at their ends. Where a template cuts those strings up, rather too much than too little.
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
