// SPDX-License-Identifier: Apache-2.0
/// Chats in the shapes people publish them: role/content (OpenAI, TRL) and from/value (ShareGPT), with tools.
#include <fmt/format.h>

#include <array>
#include <string_view>

#include "base/utf8.h"
#include "data/format.h"
#include "data/reader.h"

namespace fettle::data {
namespace {

struct RoleName {
  std::string_view name;
  std::string_view role;
};

/// ShareGPT's speakers. function_call is an assistant turn that calls tools.
constexpr std::array<RoleName, 13> kSpeakers = {{{"human", "user"},
                                                 {"user", "user"},
                                                 {"gpt", "assistant"},
                                                 {"assistant", "assistant"},
                                                 {"chatgpt", "assistant"},
                                                 {"bing", "assistant"},
                                                 {"bard", "assistant"},
                                                 {"model", "assistant"},
                                                 {"function_call", "assistant"},
                                                 {"system", "system"},
                                                 {"observation", "tool"},
                                                 {"tool", "tool"},
                                                 {"function_response", "tool"}}};

Record parse_embedded_json(const Record& text, std::string_view what) {
  const auto& json = text.get_ref<const std::string&>();
  check_depth(json);
  Record value = Record::parse(json, nullptr, false);
  if (value.is_discarded()) throw BadRecord(fmt::format("{} is not JSON", what));
  return value;
}

/// A message's content as text: null is empty, a list of text parts is joined.
std::string content_text(const Record& content) {
  if (content.is_null()) return {};
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) throw BadRecord(fmt::format("a message's content is {}, not text", kind_of(content)));
  std::string text;
  for (const Record& part : content) {
    const bool is_text = part.is_object() && part.value("type", Record("text")) == Record("text");
    if (!is_text || !part.contains("text") || !part["text"].is_string()) {
      throw BadRecord("a message holds something other than text", quote(part.dump()));
    }
    text += part["text"].get<std::string>();
  }
  return text;
}

/// {"name", "arguments"} or a list of them → the tool_calls of an assistant message.
Record tool_calls(const Record& text) {
  if (!text.is_string()) throw BadRecord("a function_call is not text");
  Record calls = parse_embedded_json(text, "a function_call");
  if (!calls.is_array()) calls = Record::array({std::move(calls)});
  Record messages = Record::array();
  for (Record& call : calls) {
    if (!call.is_object() || !call.contains("name")) throw BadRecord("a function_call has no name");
    messages.push_back(Record{{"type", "function"}, {"function", std::move(call)}});
  }
  return messages;
}

Record from_value_message(const Record& message) {
  const Record& from = message["from"];
  if (!from.is_string()) throw BadRecord("a message's 'from' is not text");
  const std::string_view speaker = from.get_ref<const std::string&>();
  if (!message.contains("value")) throw BadRecord("a message has no 'value'");
  for (const auto& [name, role] : kSpeakers) {
    if (name != speaker) continue;
    if (name == "function_call") {
      return Record{{"role", role}, {"content", ""}, {"tool_calls", tool_calls(message["value"])}};
    }
    return Record{{"role", role}, {"content", content_text(message["value"])}};
  }
  throw BadRecord("a message is from an unknown speaker",
                  fmt::format("{}; known: human, gpt, system, function_call, observation", quote(speaker)));
}

/// Keys with null are left out: Parquet gives every message the keys of all.
Record role_content_message(const Record& message) {
  const auto role = message.find("role");
  if (role == message.end() || !role->is_string()) throw BadRecord("a message has no role");
  Record result = Record::object();
  for (const auto& item : message.items()) {
    if (item.key() == "content") {
      result["content"] = content_text(item.value());
    } else if (!item.value().is_null()) {
      result[item.key()] = item.value();
    }
  }
  if (!result.contains("content")) result["content"] = "";
  return result;
}

void append_messages(const Record& list, const std::string& column, Record& messages) {
  if (!list.is_array()) throw BadRecord(fmt::format("column '{}' is {}, not a list", column, kind_of(list)));
  for (const Record& message : list) {
    if (!message.is_object()) throw BadRecord(fmt::format("column '{}' holds something other than messages", column));
    messages.push_back(message.contains("from") ? from_value_message(message) : role_content_message(message));
  }
}

/// The columns beside the messages: tools (a list, or one as JSON text), chat_template_kwargs, ShareGPT's system.
void add_variables(const Record& record, Conversation& conversation) {
  if (const auto kwargs = record.find("chat_template_kwargs"); kwargs != record.end() && kwargs->is_object()) {
    conversation.variables = *kwargs;
  }
  const auto tools = record.find("tools");
  if (tools == record.end() || tools->is_null()) return;
  if (tools->is_string() && is_blank(tools->get_ref<const std::string&>())) return;
  Record list = tools->is_string() ? parse_embedded_json(*tools, "column 'tools'") : *tools;
  if (!list.is_array()) throw BadRecord("column 'tools' is not a list");
  if (!list.empty()) conversation.variables["tools"] = std::move(list);
}

void add_system_column(const Record& record, Conversation& conversation) {
  const auto system = record.find("system");
  if (system == record.end() || !system->is_string() || is_blank(system->get_ref<const std::string&>())) return;
  Record& messages = conversation.messages;
  if (!messages.empty() && messages.front()["role"] == "system") return;
  messages.insert(messages.begin(), Record{{"role", "system"}, {"content", *system}});
}

}  // namespace

Conversation to_conversation(const Record& record, const std::string& column) {
  const auto list = record.find(column);
  if (list == record.end() || list->is_null()) throw BadRecord(fmt::format("column '{}' is missing", column));
  Conversation conversation;
  append_messages(*list, column, conversation.messages);
  if (conversation.messages.empty()) throw EmptyRecord("empty");
  add_system_column(record, conversation);
  add_variables(record, conversation);
  return conversation;
}

Conversation to_prompted_conversation(const Record& record, const config::DataConfig& config) {
  Conversation conversation;
  append_messages(record.at(config.prompt_column), config.prompt_column, conversation.messages);
  conversation.prompt_messages = conversation.messages.size();
  const auto completion = record.find(config.completion_column);
  if (completion == record.end()) throw BadRecord(fmt::format("column '{}' is missing", config.completion_column));
  append_messages(*completion, config.completion_column, conversation.messages);
  if (conversation.prompt_messages == 0 || conversation.messages.size() == conversation.prompt_messages) {
    throw EmptyRecord("empty");
  }
  add_variables(record, conversation);
  return conversation;
}

}  // namespace fettle::data
