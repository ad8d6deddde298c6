// SPDX-License-Identifier: Apache-2.0
#include "data/tool_text.h"

#include <string>

#include "base/error.h"

namespace fettle::data {
namespace {

/// JSON with a space after ',' and ':', as people and Python write it.
std::string spaced_json(const Record& value) {
  if (!value.is_structured() || value.empty()) return value.dump();
  std::string text;
  for (const auto& item : value.items()) {
    if (!text.empty()) text += ", ";
    if (value.is_object()) text += Record(item.key()).dump() + ": ";
    text += spaced_json(item.value());
  }
  return value.is_object() ? "{" + text + "}" : "[" + text + "]";
}

}  // namespace

bool shows_tool_calls(const text::ChatTemplate& chat) {
  constexpr const char* kName = "look_up_the_weather";
  constexpr const char* kId = "fettle123";  // Mistral's templates demand nine letters and digits
  const Record call = {
      {"id", kId}, {"type", "function"}, {"function", {{"name", kName}, {"arguments", {{"city", "Oslo"}}}}}};
  const Record messages =
      Record::array({{{"role", "user"}, {"content", "hello"}},
                     {{"role", "assistant"}, {"content", ""}, {"tool_calls", Record::array({call})}},
                     {{"role", "tool"}, {"content", "4"}, {"tool_call_id", kId}},
                     {{"role", "assistant"}, {"content", "4 degrees"}}});
  try {
    return chat.render(messages, false).text.find(kName) != std::string::npos;
  } catch (const Error&) {
    return true;
  }
}

Record with_tool_calls_as_text(const Record& messages) {
  Record changed = Record::array();
  for (Record message : messages) {
    const auto calls = message.find("tool_calls");
    if (calls != message.end() && calls->is_array()) {
      std::string content = message["content"].get<std::string>();
      for (const Record& call : *calls) {
        if (!content.empty()) content += '\n';
        content += spaced_json(call.value("function", call));
      }
      message["content"] = content;
      message.erase("tool_calls");
    }
    changed.push_back(std::move(message));
  }
  return changed;
}

}  // namespace fettle::data
