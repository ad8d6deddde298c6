// SPDX-License-Identifier: Apache-2.0
#include "data/task.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/error.h"
#include "base/utf8.h"
#include "config/config.h"
#include "data/reader.h"
#include "data/record.h"

namespace fettle::data {
namespace {

/// What Python's str.rstrip removes, in UTF-8.
constexpr std::array<std::string_view, 29> kSpaces = {
    " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1C",   "\x1D",   "\x1E",   "\x1F",
    "\u0085", "\u00A0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
    "\u2007", "\u2008", "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};

size_t end_without_spaces(std::string_view text) {
  const auto is_end = [&text](std::string_view space) { return text.ends_with(space); };
  for (;;) {
    const auto* space = std::ranges::find_if(kSpaces, is_end);
    if (space == kSpaces.end()) return text.size();
    text.remove_suffix(space->size());
  }
}

std::optional<int32_t> prefix_id(const text::Tokenizer& tokenizer) {
  return tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
}

std::vector<int32_t> encode(const text::Tokenizer& tokenizer, const std::string& text) {
  const auto prefix = prefix_id(tokenizer);
  const std::string spelled = prefix ? tokenizer.decode(std::array{*prefix}, false) : "";
  return tokenizer.encode(text, !prefix || !text.starts_with(spelled)).ids;
}

std::string text_of(const Record& record, const char* key) {
  const auto value = record.find(key);
  if (value == record.end()) throw BadRecord(fmt::format("there is no \"{}\"", key));
  if (!value->is_string()) throw BadRecord(fmt::format("\"{}\" is {}, not text", key, kind_of(*value)));
  return value->get<std::string>();
}

std::vector<std::string> choices_of(const Record& record) {
  const auto list = record.find("choices");
  if (list == record.end()) throw BadRecord("there is no \"choices\"");
  if (!list->is_array()) throw BadRecord(fmt::format("\"choices\" is {}, not a list", kind_of(*list)));
  if (list->size() < 2) throw BadRecord(fmt::format("\"choices\" has {}; at least two are needed", list->size()));
  std::vector<std::string> choices;
  for (const Record& choice : *list) {
    if (!choice.is_string()) throw BadRecord(fmt::format("a choice is {}, not text", kind_of(choice)));
    if (choice.get_ref<const std::string&>().empty()) {
      throw BadRecord(fmt::format("choice {} is empty", choices.size()));
    }
    choices.push_back(choice.get<std::string>());
  }
  return choices;
}

int64_t gold_of(const Record& record, size_t choices) {
  const auto gold = record.find("gold");
  if (gold == record.end()) throw BadRecord("there is no \"gold\"");
  if (!gold->is_number_integer()) {
    throw BadRecord(
        fmt::format("\"gold\" is {}, not a whole number", gold->is_number() ? gold->dump() : kind_of(*gold)));
  }
  const bool in_range = gold->is_number_unsigned() && gold->get<uint64_t>() < choices;
  if (!in_range) {
    throw BadRecord(fmt::format("\"gold\" is {}, and the choices are counted from 0 to {}", gold->dump(), choices - 1));
  }
  return gold->get<int64_t>();
}

/// `is_cut` is set where the context lost its beginning.
ScoredContinuation scored(std::vector<int32_t> context, std::vector<int32_t> continuation, int64_t longest,
                          bool& is_cut) {
  if (std::ssize(continuation) > longest) {
    throw BadRecord(
        fmt::format("a choice has {} tokens, and the model reads {} at once", continuation.size(), longest));
  }
  std::vector<int32_t> whole = std::move(context);
  whole.insert(whole.end(), continuation.begin(), continuation.end());
  if (std::ssize(whole) > longest + 1) {
    whole.erase(whole.begin(), whole.end() - (longest + 1));
    is_cut = true;
  }
  whole.pop_back();
  return {std::move(whole), std::move(continuation)};
}

TaskItem read_item(const Record& record, const text::Tokenizer& tokenizer, int64_t longest, int64_t& truncated) {
  const std::string context = text_of(record, "context");
  TaskItem item;
  item.choices = choices_of(record);
  item.gold = gold_of(record, item.choices.size());
  for (const std::string& choice : item.choices) {
    auto [before, after] = encode_pair(tokenizer, context, choice);
    bool is_cut = false;
    item.encodings.push_back(scored(std::move(before), std::move(after), longest, is_cut));
    truncated += is_cut ? 1 : 0;
  }
  return item;
}

}  // namespace

int64_t characters(std::string_view text) {
  return std::ranges::count_if(text, [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U; });
}

std::pair<std::vector<int32_t>, std::vector<int32_t>> encode_pair(const text::Tokenizer& tokenizer,
                                                                  std::string_view context,
                                                                  std::string_view continuation) {
  const std::string_view before = context.substr(0, end_without_spaces(context));
  const std::string whole = std::string(context) + std::string(continuation);
  std::vector<int32_t> context_ids;
  if (!before.empty()) context_ids = encode(tokenizer, std::string(before));
  std::vector<int32_t> ids;
  if (context_ids.empty()) {
    ids = tokenizer.encode(whole, false).ids;
    const auto prefix = prefix_id(tokenizer);
    if (!prefix) throw BadRecord("the context is empty, and the tokenizer has neither BOS nor EOS to stand for it");
    if (ids.empty() || ids.front() != *prefix) ids.insert(ids.begin(), *prefix);
    context_ids = {*prefix};
  } else {
    ids = encode(tokenizer, whole);
  }
  if (ids.size() <= context_ids.size()) {
    throw BadRecord(fmt::format("choice {} adds no token to the context", quote(continuation)));
  }
  return {context_ids, {ids.begin() + std::ssize(context_ids), ids.end()}};
}

Task read_task(const std::filesystem::path& file, const text::Tokenizer& tokenizer, int64_t longest) {
  const auto reader = open_records(file, config::DataConfig());
  Task task;
  for (RawRecord raw; reader->next(raw);) {
    try {
      task.items.push_back(read_item(reader->parse(raw), tokenizer, longest, task.truncated));
    } catch (const BadRecord& bad) {
      throw Error(ExitCode::kData, fmt::format("task_file: {}: {}", reader->place(raw), bad.what()),
                  "an item is {\"context\": \"…\", \"choices\": [\"…\", \"…\"], \"gold\": 0}");
    }
  }
  if (task.items.empty()) {
    throw Error(ExitCode::kData, fmt::format("task_file: {} has no items", file.string()), "write one a line");
  }
  return task;
}

}  // namespace fettle::data
