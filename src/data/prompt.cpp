// SPDX-License-Identifier: Apache-2.0
#include "data/prompt.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/utf8.h"
#include "data/tool_text.h"

namespace fettle::data {
namespace {

using text::SegmentedText;

/// Stanford Alpaca's two opening sentences.
constexpr const char* kAlpacaWithInput =
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.";
constexpr const char* kAlpacaWithoutInput =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";

/// Llama 2's chat format, in which BOS opens every exchange.
constexpr const char* kLlama2Template =
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] "
    "%}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('the llama2 template needs the roles user and assistant in turn') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}";

void append_fixed(SegmentedText& text, std::string_view piece) {
  text.text += piece;
}

void append_user(SegmentedText& text, std::string_view piece) {
  if (piece.empty()) return;
  text.user.push_back({text.text.size(), text.text.size() + piece.size()});
  text.text += piece;
}

Example all_targets(std::vector<int32_t> ids) {
  Example example{std::move(ids), {}};
  example.labels = example.input_ids;
  return example;
}

/// Tokens that touch a span are targets, and all between the first and the last of them. `spans` ascend.
Example span_targets(const text::Encoding& encoding, const std::vector<text::Span>& spans) {
  Example example{encoding.ids, std::vector<int32_t>(encoding.ids.size(), kIgnore)};
  size_t next = 0;
  for (const text::Span& span : spans) {
    while (next < encoding.ids.size() && encoding.offsets[next].end <= span.begin) ++next;
    while (next < encoding.ids.size() && encoding.offsets[next].begin < span.end) {
      example.labels[next] = encoding.ids[next];
      ++next;
    }
    if (next > 0) --next;  // the last token may reach into the next span
  }
  return example;
}

std::string today() {
  return fmt::format("{:%Y-%m-%d}", fmt::localtime(std::time(nullptr)));
}

bool teaches(const Record& message) {
  const auto content = message.find("content");
  return message.contains("tool_calls") ||
         (content != message.end() && content->is_string() && !is_blank(content->get_ref<const std::string&>()));
}

/// The messages that will be targets must hold something, or the end mark alone would be learned.
void require_targets(const Record& messages, size_t prompt_messages, bool last_only) {
  bool any_turn = false;
  bool taught = false;
  for (size_t i = prompt_messages; i < messages.size(); ++i) {
    if (prompt_messages == 0 && messages[i]["role"] != "assistant") continue;
    any_turn = true;
    taught = teaches(messages[i]) || (taught && !last_only);
  }
  if (!taught) throw EmptyRecord(any_turn ? "empty answer" : "no assistant turn");
}

}  // namespace

PromptBuilder::PromptBuilder(const config::DataConfig& config, text::Tokenizer tokenizer)
    : config_(config), tokenizer_(std::move(tokenizer)), name_(config.prompt_template) {
  if (const auto eos = tokenizer_.eos_id()) eos_ = tokenizer_.token(*eos);
  if (name_ == "auto") name_ = tokenizer_.has_chat_template() ? "chat" : "alpaca";
  if (name_ == "chat") {
    if (!tokenizer_.has_chat_template()) {
      throw Error(ExitCode::kConfig, "prompt_template: chat, but the tokenizer has no chat template",
                  "set prompt_template to alpaca, llama2, none or a Jinja file");
    }
    source_ = tokenizer_.chat_template();
  } else if (name_ == "llama2") {
    if (!tokenizer_.bos_id() || !tokenizer_.eos_id()) {
      throw Error(ExitCode::kConfig,
                  fmt::format("prompt_template: llama2 needs a BOS and an EOS token, and the tokenizer names no {}",
                              tokenizer_.bos_id() ? "EOS" : "BOS"),
                  "use the tokenizer of a Llama 2 model, or set prompt_template to chat, alpaca or none");
    }
    source_ = kLlama2Template;
  } else if (name_ != "alpaca" && name_ != "none") {
    if (!std::filesystem::exists(name_)) {
      throw Error(ExitCode::kUsage, fmt::format("prompt_template: '{}' is neither known nor a file", name_),
                  "use auto, alpaca, llama2, chat, none or the path of a Jinja file");
    }
    source_ = read_file(name_);
  }
  if (source_.empty()) return;
  const std::string& for_tools = name_ == "chat" ? tokenizer_.tool_use_template() : std::string();
  if ((source_ + for_tools).find("strftime_now") != std::string::npos) {
    date_ = config_.template_date.empty() ? today() : config_.template_date;
  }
  chat_.emplace(make_chat(source_));
  if (!for_tools.empty()) tool_chat_.emplace(make_chat(for_tools));
}

PromptBuilder::Chat PromptBuilder::make_chat(const std::string& source) const {
  const text::ChatTemplate chat(source, tokenizer_.special_tokens(), tokenizer_.special_spellings(), date_);
  return {chat, shows_tool_calls(chat)};
}

const PromptBuilder::Chat& PromptBuilder::chat_for(const Record& variables) const {
  return tool_chat_ && variables.contains("tools") && !variables["tools"].is_null() ? *tool_chat_ : *chat_;
}

Record PromptBuilder::messages_for(const Chat& chat, const Record& messages) const {
  const auto calls = [](const Record& message) { return message.contains("tool_calls"); };
  if (chat.shows_calls || std::none_of(messages.begin(), messages.end(), calls)) return messages;
  std::call_once(calls_as_text_, [] {
    log::warning("the chat template shows no tool calls: they are written into the answers, as JSON, one a line");
  });
  return with_tool_calls_as_text(messages);
}

text::Encoding PromptBuilder::encode(const text::ChatTemplate::Rendered& rendered) const {
  return tokenizer_.encode(SegmentedText{rendered.text, rendered.user}, false);
}

TurnChoice PromptBuilder::turn_choice(const text::Encoding& encoding) const {
  TurnChoice choice{.last_only = config_.mask_history};
  const auto limit = static_cast<size_t>(config_.max_seq_length);
  const bool cut = !config_.packing || config_.packing_strategy != "bfd_split";
  if (cut && encoding.offsets.size() > limit) choice.before = encoding.offsets[limit].begin;
  return choice;
}

Example PromptBuilder::build(const Sample& sample) const {
  try {
    return std::visit([this](const auto& kind) { return build(kind); }, sample);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) throw;
    throw BadRecord("the chat template or the tokenizer refuses the record", error.what());
  }
}

Example PromptBuilder::build(const Instruction& sample) const {
  if (is_blank(sample.output)) throw EmptyRecord("empty answer");
  if (chat_) return build(instruction_conversation(sample, {}));
  if (name_ == "alpaca") return encode_text(alpaca_prompt(sample, {}), sample.output);
  SegmentedText prompt;
  append_user(prompt, sample.input.empty() ? sample.instruction : sample.instruction + "\n\n" + sample.input);
  return encode_text(prompt, sample.output);
}

Example PromptBuilder::build(const PromptCompletion& sample) const {
  if (is_blank(sample.completion)) throw EmptyRecord("empty answer");
  if (config_.prompt_template != "auto" && name_ != "none") {
    return build(Instruction{sample.prompt, {}, sample.completion});
  }
  SegmentedText prompt;
  append_user(prompt, sample.prompt);
  return encode_text(prompt, sample.completion);
}

Example PromptBuilder::build(const Text& sample) const {
  if (is_blank(sample.text)) throw EmptyRecord("empty");
  note_spelled_mark(sample.text);
  SegmentedText text;
  append_user(text, sample.text);
  append_end(text);
  return all_targets(tokenizer_.encode(text, true).ids);
}

Example PromptBuilder::build(const Example& sample) const {
  if (sample.input_ids.empty()) throw EmptyRecord("empty");
  const auto require = [size = tokenizer_.vocab_size()](int32_t id, size_t position) {
    if (id >= 0 && id < size) return;
    throw BadRecord("a token id that the tokenizer does not have",
                    fmt::format("{} at position {}; it has {}", id, position, size));
  };
  for (size_t i = 0; i < sample.input_ids.size(); ++i) {
    require(sample.input_ids[i], i);
    if (sample.labels[i] != kIgnore) require(sample.labels[i], i);
  }
  return sample;
}

Example PromptBuilder::build(const Conversation& sample) const {
  if (!chat_) {
    throw Error(ExitCode::kConfig, fmt::format("prompt_template: {} cannot show conversations", name_),
                "set prompt_template to chat (the tokenizer needs a chat template), llama2 or a Jinja file");
  }
  const Chat& chosen = chat_for(sample.variables);
  const text::ChatTemplate& chat = chosen.chat;
  const Record messages = messages_for(chosen, sample.messages);
  const bool masked = config_.completion_only_loss;
  if (masked) require_targets(messages, sample.prompt_messages, config_.mask_history);
  const auto full = chat.render(messages, false, sample.variables);
  const auto is_end = [&](const text::Span& span) {
    return full.text.compare(span.begin, span.end - span.begin, eos_) == 0;
  };
  if (std::any_of(full.user.begin(), full.user.end(), is_end)) ++spelled_marks_;
  const auto encoding = encode(full);
  if (!masked) return all_targets(encoding.ids);
  if (sample.prompt_messages > 0) {
    const size_t begin = completion_begin(chat, messages, sample.prompt_messages, sample.variables, full);
    return span_targets(encoding, {{begin, full.text.size()}});
  }
  const auto spans = assistant_spans(chat, messages, sample.variables, full, turn_choice(encoding));
  if (spans.empty()) throw BadRecord("the chat template marks nothing as generated");
  return span_targets(encoding, spans);
}

Conversation PromptBuilder::instruction_conversation(const Instruction& sample, std::string system) const {
  const bool has_input = !sample.input.empty();
  if (system.empty()) system = has_input ? config_.prompt_with_input : config_.prompt_without_input;
  const bool llama2 = name_ == "llama2";
  if (llama2 && system.empty()) system = has_input ? kAlpacaWithInput : kAlpacaWithoutInput;
  Conversation conversation;
  if (!system.empty()) conversation.messages.push_back({{"role", "system"}, {"content", system}});
  const std::string user = has_input ? sample.instruction + (llama2 ? " " : "\n\n") + sample.input : sample.instruction;
  conversation.messages.push_back({{"role", "user"}, {"content", user}});
  conversation.prompt_messages = conversation.messages.size();
  conversation.messages.push_back({{"role", "assistant"}, {"content", sample.output}});
  return conversation;
}

SegmentedText PromptBuilder::alpaca_prompt(const Instruction& sample, std::string system) const {
  const bool has_input = !sample.input.empty();
  if (system.empty()) system = has_input ? config_.prompt_with_input : config_.prompt_without_input;
  if (system.empty()) system = has_input ? kAlpacaWithInput : kAlpacaWithoutInput;
  SegmentedText prompt;
  append_fixed(prompt, system);
  append_fixed(prompt, "\n\n### Instruction:\n");
  append_user(prompt, sample.instruction);
  if (has_input) {
    append_fixed(prompt, "\n\n### Input:\n");
    append_user(prompt, sample.input);
  }
  append_fixed(prompt, "\n\n### Response:\n");
  return prompt;
}

void PromptBuilder::append_end(SegmentedText& text) const {
  if (eos_.empty()) {
    throw Error(ExitCode::kConfig, "the tokenizer names no EOS token, so no document could be ended",
                "set eos_token in its tokenizer_config.json");
  }
  // A text that already ends in EOS's spelling ends in EOS, once: TRL's rule, and the same end either way.
  if (text.text.ends_with(eos_) && !text.user.empty() && text.user.back().end == text.text.size()) {
    const size_t end = text.text.size() - eos_.size();
    while (!text.user.empty() && text.user.back().begin >= end) text.user.pop_back();
    if (!text.user.empty()) text.user.back().end = std::min(text.user.back().end, end);
    return;
  }
  append_fixed(text, eos_);
}

Example PromptBuilder::encode_text(const SegmentedText& prompt, const std::string& completion) const {
  note_spelled_mark(completion);
  SegmentedText whole = prompt;
  append_user(whole, completion);
  append_end(whole);
  std::vector<int32_t> ids = tokenizer_.encode(whole, true).ids;
  Example example = all_targets(std::move(ids));
  if (!config_.completion_only_loss) return example;
  const std::vector<int32_t> prompt_ids = tokenizer_.encode(prompt, true).ids;
  const auto parting =
      std::mismatch(example.input_ids.begin(), example.input_ids.end(), prompt_ids.begin(), prompt_ids.end());
  std::fill_n(example.labels.begin(), parting.first - example.input_ids.begin(), kIgnore);
  return example;
}

void PromptBuilder::note_spelled_mark(const std::string& text) const {
  if (eos_.empty()) return;
  const size_t found = text.find(eos_);
  if (found != std::string::npos && found + eos_.size() < text.size()) ++spelled_marks_;
}

std::vector<int32_t> PromptBuilder::generation_prompt(const std::string& user, const std::string& system) const {
  const Instruction question{user, {}, {}};
  if (chat_) {
    Record messages = instruction_conversation(question, system).messages;
    messages.erase(messages.size() - 1);
    return encode(chat_->chat.render(messages, true)).ids;
  }
  SegmentedText prompt;
  if (name_ == "alpaca") {
    prompt = alpaca_prompt(question, system);
  } else if (system.empty()) {
    append_user(prompt, user);
  } else {
    throw Error(ExitCode::kConfig, "system_prompt: prompt_template none has no place for it",
                "put it into the prompt, or choose another template");
  }
  std::vector<int32_t> ids = tokenizer_.encode(prompt, true).ids;
  if (ids.size() > 1 && tokenizer_.eos_id() == ids.back())
    ids.pop_back();  // a tokenizer that ends every text (add_eos_token)
  return ids;
}

Record PromptBuilder::opening(const std::string& system) const {
  const Record messages = instruction_conversation({}, system).messages;
  Record first = Record::array();
  if (messages[0]["role"] == "system") first.push_back(messages[0]);
  return first;
}

std::vector<int32_t> PromptBuilder::chat_prompt(const Record& messages) const {
  if (!chat_) require_chat_template(config_, tokenizer_);
  return encode(chat_->chat.render(messages, true)).ids;
}

void require_chat_template(const config::DataConfig& config, const text::Tokenizer& tokenizer) {
  const std::string& name = config.prompt_template;
  const bool is_missing = name == "auto" && !tokenizer.has_chat_template();
  if (!is_missing && name != "alpaca" && name != "none") return;
  throw Error(ExitCode::kConfig,
              is_missing ? "the tokenizer has no chat template, so there is no way to show the model a conversation"
                         : fmt::format("prompt_template: {} shows one question, not a conversation", name),
              "set prompt_template to llama2 or the path of a Jinja chat template, as in the model's training");
}

bool PromptBuilder::ends_with_mark(const Example& example) const {
  size_t position = example.labels.size();
  while (position > 0 && example.labels[position - 1] == kIgnore) --position;
  for (; position > 0 && example.labels[position - 1] != kIgnore; --position) {
    const int32_t id = example.labels[position - 1];
    if (tokenizer_.eos_id() == id || tokenizer_.is_special(id)) return true;
    if (!is_blank(tokenizer_.decode({&id, 1}, false))) return false;
  }
  return false;
}

}  // namespace fettle::data
