// SPDX-License-Identifier: Apache-2.0
#include "text/chat_template.h"

#include <array>
#include <utility>

#include "base/error.h"
#include "text/rust.h"
#include "text/stand_ins.h"

namespace fettle::text {
namespace {

constexpr std::array kReasoningKeys = {"reasoning_content", "thinking", "reasoning"};

/// As transformers prepares messages: keys without a value are left out, and reasoning is there under each of its
/// names.
OrderedJson prepare_message(const OrderedJson& message) {
  if (!message.is_object()) {
    throw Error(ExitCode::kData, "a message is not an object with role and content");
  }
  OrderedJson prepared = OrderedJson::object();
  for (const char* key : kReasoningKeys) {
    if (const auto found = message.find(key); found != message.end() && !found->is_null()) {
      prepared["thinking"] = *found;
      break;
    }
  }
  const OrderedJson reasoning = prepared.contains("thinking") ? prepared["thinking"] : OrderedJson();
  for (const auto& [key, value] : message.items()) {
    if (!value.is_null()) {
      prepared[key] = value;
    }
  }
  if (!reasoning.is_null()) {
    prepared["reasoning_content"] = reasoning;
  }
  return prepared;
}

constexpr int kDeepestVariable = 100;  // of nested arrays and objects; serde_json's limit is 128

void check_depth(const OrderedJson& value, int depth = 0) {
  if (depth > kDeepestVariable) {
    throw Error(ExitCode::kData, "a record is nested too deeply for a chat template");
  }
  if (value.is_structured()) {
    for (const auto& item : value) {
      check_depth(item, depth + 1);
    }
  }
}

OrderedJson prepare_messages(const OrderedJson& messages) {
  if (!messages.is_array() || messages.empty()) {
    throw Error(ExitCode::kData, "a chat has no messages", "give at least one message with role and content");
  }
  OrderedJson prepared = OrderedJson::array();
  for (const auto& message : messages) {
    prepared.push_back(prepare_message(message));
  }
  return prepared;
}

std::string dump(const OrderedJson& value) {
  try {
    return value.dump();
  } catch (const OrderedJson::exception&) {
    throw Error(ExitCode::kData, "a message is not valid UTF-8");
  }
}

}  // namespace

struct ChatTemplate::State {
  State(std::string jinja, const std::vector<std::string>& special_spellings)
      : source(std::move(jinja)), spellings(special_spellings) {}

  std::string source;
  OrderedJson special_tokens;
  Spellings spellings;
  rust::TemplateHandle handle;
  bool marks_generation = false;

  /// The template's variables as JSON text: its own, and over them the record's.
  [[nodiscard]] std::string context(const OrderedJson& record, bool add_generation_prompt) const;
  /// `block_marks`: none, or two characters that are written around generation blocks.
  [[nodiscard]] std::string render(const std::string& context, const std::string& block_marks) const;
};

std::string ChatTemplate::State::context(const OrderedJson& record, bool add_generation_prompt) const {
  OrderedJson variables = special_tokens;
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  variables.update(record);
  variables["add_generation_prompt"] = add_generation_prompt;
  return dump(variables);
}

std::string ChatTemplate::State::render(const std::string& context, const std::string& block_marks) const {
  rust::Buffer text;
  rust::Buffer error;
  const int32_t status = fettle_template_render(handle.get(), rust::data(context), context.size(),
                                                rust::data(block_marks), block_marks.size(), text.out(), error.out());
  if (status == FETTLE_OK) {
    return text.string();
  }
  if (status == FETTLE_RAISED) {
    throw Error(ExitCode::kData, "the chat template refuses these messages: " + error.string(),
                "change the record, or the template with prompt_template");
  }
  throw Error(ExitCode::kData, "the chat template fails on these messages: " + error.string(),
              "check the record's messages, or set prompt_template");
}

ChatTemplate::ChatTemplate(std::string source, const nlohmann::json& special_tokens,
                           const std::vector<std::string>& spellings, const std::string& date) {
  auto state = std::make_shared<State>(std::move(source), spellings);
  state->special_tokens = special_tokens.is_object() ? OrderedJson(special_tokens) : OrderedJson::object();
  FettleTemplate* handle = nullptr;
  rust::Buffer error;
  const int32_t status = fettle_template_new(rust::data(state->source), state->source.size(), rust::data(date),
                                             date.size(), &handle, error.out());
  rust::check(status, error, ExitCode::kConfig, "the chat template", "correct the template, or set prompt_template");
  state->handle.reset(handle);
  state->marks_generation = fettle_template_marks_generation(handle) != 0;
  state_ = std::move(state);
}

ChatTemplate::Rendered ChatTemplate::render(const OrderedJson& messages, bool add_generation_prompt,
                                            const OrderedJson& extra) const {
  check_depth(messages);
  check_depth(extra);
  OrderedJson record = extra;
  record["messages"] = prepare_messages(messages);
  const std::string as_given = state_->context(record, add_generation_prompt);
  StandIns stand_ins(state_->spellings, state_->source, as_given);
  bool spells = false;
  for (auto& variable : record) {
    spells = stand_ins.put_into(variable) || spells;
  }
  const std::string context = spells ? state_->context(record, add_generation_prompt) : as_given;
  Rendered rendered = stand_ins.restore(state_->render(context, {})).rendered;
  if (state_->marks_generation) {
    const std::string& marks = stand_ins.block_marks();
    StandIns::Restored marked = stand_ins.restore(state_->render(context, marks));
    if (!marked.balanced || marked.rendered.text != rendered.text) {
      throw Error(ExitCode::kConfig, "the chat template changes or nests its {% generation %} blocks",
                  "use a template whose blocks are written as they are");
    }
    return std::move(marked.rendered);
  }
  return rendered;
}

bool ChatTemplate::marks_generation() const {
  return state_->marks_generation;
}

}  // namespace fettle::text
