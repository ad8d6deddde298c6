// SPDX-License-Identifier: Apache-2.0
#include "text/chat_template.h"

#include <array>
#include <utility>

#include "base/error.h"
#include "text/rust.h"
#include "text/user_spans.h"

namespace fettle::text {
namespace {

constexpr std::array kReasoningKeys = {"reasoning_content", "thinking", "reasoning"};
/// Variables whose text comes from records, like the messages'.
constexpr std::array kRecordVariables = {"messages", "tools", "documents"};

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

constexpr int kDeepest = 100;  // of nested arrays and objects; serde_json's limit is 128

void check_depth(const OrderedJson& value, int depth = 0) {
  if (depth > kDeepest) {
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
  std::string source;
  OrderedJson special_tokens;
  rust::TemplateHandle handle;
  bool marks_generation = false;

  struct Output {
    int32_t status = FETTLE_OK;
    std::string text;
    std::string error;
  };
  /// `context`: the variables as JSON text; `generation_marks`: none, or two characters around generation blocks.
  [[nodiscard]] Output render(const std::string& context, const std::string& generation_marks) const;
  [[nodiscard]] std::string render_or_throw(const std::string& context) const;
  [[nodiscard]] std::vector<Span> user_spans(const OrderedJson& context, const Marks& marks,
                                             const std::string& text) const;
  [[nodiscard]] std::vector<Span> generation_spans(const std::string& context, const Marks& marks,
                                                   const std::string& text) const;
};

ChatTemplate::State::Output ChatTemplate::State::render(const std::string& context,
                                                        const std::string& generation_marks) const {
  rust::Buffer text;
  rust::Buffer error;
  const int32_t status =
      fettle_template_render(handle.get(), rust::data(context), context.size(), rust::data(generation_marks),
                             generation_marks.size(), text.out(), error.out());
  return {.status = status, .text = text.string(), .error = error.string()};
}

std::string ChatTemplate::State::render_or_throw(const std::string& context) const {
  Output output = render(context, {});
  if (output.status == FETTLE_OK) {
    return std::move(output.text);
  }
  if (output.status == FETTLE_RAISED) {
    throw Error(ExitCode::kData, "the chat template refuses these messages: " + output.error,
                "change the record, or the template with prompt_template");
  }
  throw Error(ExitCode::kData, "the chat template fails on these messages: " + output.error,
              "check the record's messages, or set prompt_template");
}

std::vector<Span> ChatTemplate::State::user_spans(const OrderedJson& context, const Marks& marks,
                                                  const std::string& text) const {
  OrderedJson marked = context;
  std::vector<OrderedJson> sources;
  for (const char* name : kRecordVariables) {
    if (context.contains(name)) {
      sources.push_back(context[name]);
      marked[name] = mark_strings(context[name], marks);
    }
  }
  const Output output = render(dump(marked), {});
  if (output.status == FETTLE_OK) {
    Unmarked found = remove_marks(output.text, marks);
    if (found.balanced && found.text == text) {
      return std::move(found.spans);
    }
  }
  return search_strings(text, sources);
}

std::vector<Span> ChatTemplate::State::generation_spans(const std::string& context, const Marks& marks,
                                                        const std::string& text) const {
  const Output output = render(context, marks.begin + marks.end);
  Unmarked found = remove_marks(output.text, marks);
  if (output.status != FETTLE_OK || !found.balanced || found.text != text) {
    throw Error(ExitCode::kConfig, "the chat template changes or nests its {% generation %} blocks",
                "use a template whose blocks are written as they are");
  }
  return std::move(found.spans);
}

ChatTemplate::ChatTemplate(std::string source, const nlohmann::json& special_tokens) {
  auto state = std::make_shared<State>();
  state->source = std::move(source);
  state->special_tokens = special_tokens.is_object() ? OrderedJson(special_tokens) : OrderedJson::object();
  FettleTemplate* handle = nullptr;
  rust::Buffer error;
  const int32_t status = fettle_template_new(rust::data(state->source), state->source.size(), &handle, error.out());
  rust::check(status, error, ExitCode::kConfig, "the chat template", "correct the template, or set prompt_template");
  state->handle.reset(handle);
  state->marks_generation = fettle_template_marks_generation(handle) != 0;
  state_ = std::move(state);
}

ChatTemplate::Rendered ChatTemplate::render(const OrderedJson& messages, bool add_generation_prompt,
                                            const OrderedJson& extra) const {
  check_depth(messages);
  check_depth(extra);
  OrderedJson context = state_->special_tokens;
  context["tools"] = nullptr;
  context["documents"] = nullptr;
  context.update(extra);
  context["messages"] = prepare_messages(messages);
  context["add_generation_prompt"] = add_generation_prompt;
  const std::string json = dump(context);
  Rendered rendered;
  rendered.text = state_->render_or_throw(json);
  const Marks marks = choose_marks(json + state_->source);
  rendered.user = state_->user_spans(context, marks, rendered.text);
  if (state_->marks_generation) {
    rendered.generation = state_->generation_spans(json, marks, rendered.text);
  }
  return rendered;
}

bool ChatTemplate::marks_generation() const {
  return state_->marks_generation;
}

}  // namespace fettle::text
