// SPDX-License-Identifier: Apache-2.0
#include "data/format.h"

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"

namespace fettle::data {
namespace {

using config::DataConfig;

constexpr const char* kHint =
    "set dataset_format, or the columns' names: instruction_column, input_column, output_column, prompt_column, "
    "completion_column, messages_column, conversations_column, text_column";

/// The columns without which a record is not of this format.
std::vector<std::string> required_columns(RecordFormat format, const DataConfig& config) {
  switch (format) {
    case RecordFormat::kAlpaca:
      return {config.instruction_column, config.output_column};
    case RecordFormat::kPromptCompletion:
      return {config.prompt_column, config.completion_column};
    case RecordFormat::kMessages:
      return {config.messages_column};
    case RecordFormat::kShareGpt:
      return {config.conversations_column};
    case RecordFormat::kText:
      return {config.text_column};
    case RecordFormat::kTokenized:
      return {"input_ids"};
  }
  throw Error(ExitCode::kInternal, "a record format without columns");
}

bool has_columns(const Record& record, const std::vector<std::string>& columns) {
  for (const auto& column : columns) {
    if (!record.contains(column)) return false;
  }
  return true;
}

std::string column_list(const Record& record) {
  constexpr int kShown = 30;
  std::string list;
  int count = 0;
  for (const auto& item : record.items()) {
    if (count++ == kShown) return list + " …";
    list += (list.empty() ? "" : ", ") + quote(item.key());
  }
  return list.empty() ? "none" : list;
}

const Record* find_column(const Record& record, const std::string& column) {
  const auto found = record.find(column);
  return found == record.end() || found->is_null() ? nullptr : &*found;
}

std::string text_of(const Record& record, const std::string& column, bool required) {
  if (required && !record.contains(column)) throw BadRecord(fmt::format("column '{}' is missing", column));
  const Record* value = find_column(record, column);
  if (value == nullptr) return {};
  if (!value->is_string()) throw BadRecord(fmt::format("column '{}' is {}, not text", column, kind_of(*value)));
  return value->get<std::string>();
}

std::vector<int32_t> integers_of(const Record& record, const std::string& column) {
  const Record& list = record.at(column);
  if (!list.is_array()) throw BadRecord(fmt::format("column '{}' is {}, not a list", column, kind_of(list)));
  std::vector<int32_t> integers;
  integers.reserve(list.size());
  for (const Record& item : list) {
    const bool fits = item.is_number_integer() &&  // 2^63 and above is held unsigned and would turn negative
                      (!item.is_number_unsigned() || item.get<uint64_t>() <= std::numeric_limits<int32_t>::max());
    const int64_t value = fits ? item.get<int64_t>() : std::numeric_limits<int64_t>::max();
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
      throw BadRecord(fmt::format("column '{}' holds something that is not a 32-bit integer", column),
                      quote(item.dump()));
    }
    integers.push_back(static_cast<int32_t>(value));
  }
  return integers;
}

/// A column beside input_ids; empty if the record has none. Throws BadRecord if it has another length.
std::vector<int32_t> beside_ids(const Record& record, const std::string& column, size_t length) {
  if (find_column(record, column) == nullptr) return {};
  std::vector<int32_t> values = integers_of(record, column);
  if (values.size() != length) {
    throw BadRecord(fmt::format("column '{}' and input_ids differ in length", column),
                    fmt::format("{} and {}", values.size(), length));
  }
  return values;
}

/// As TRL takes them: `labels` as they are, else input_ids where assistant_masks and (with completion_only_loss)
/// completion_mask are 1. Unlike TRL, tokens whose attention_mask is 0 are left out: they are padding.
Example to_example(const Record& record, const DataConfig& config) {
  if (find_column(record, "input_ids") == nullptr) throw BadRecord("column 'input_ids' is missing");
  const std::vector<int32_t> ids = integers_of(record, "input_ids");
  const std::vector<int32_t> labels = beside_ids(record, "labels", ids.size());
  const std::vector<int32_t> attention = beside_ids(record, "attention_mask", ids.size());
  const std::vector<int32_t> assistant = beside_ids(record, "assistant_masks", ids.size());
  const std::vector<int32_t> completion = beside_ids(record, "completion_mask", ids.size());
  Example example;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!attention.empty() && attention[i] == 0) continue;
    const bool target = (assistant.empty() || assistant[i] != 0) &&
                        (completion.empty() || completion[i] != 0 || !config.completion_only_loss);
    example.input_ids.push_back(ids[i]);
    example.labels.push_back(!labels.empty() ? labels[i] : target ? ids[i] : kIgnore);
  }
  return example;
}

}  // namespace

std::string format_name(RecordFormat format) {
  switch (format) {
    case RecordFormat::kAlpaca:
      return "alpaca";
    case RecordFormat::kPromptCompletion:
      return "prompt_completion";
    case RecordFormat::kMessages:
      return "messages";
    case RecordFormat::kShareGpt:
      return "sharegpt";
    case RecordFormat::kText:
      return "text";
    case RecordFormat::kTokenized:
      return "tokenized";
  }
  return {};
}

namespace {

/// A column that the user named in place of the usual one has to be there, whatever the format: else it is misspelt.
/// Not the input column, which a record may lack.
void require_named_columns(const Record& first, const DataConfig& config, const std::string& place) {
  static constexpr std::pair<const char*, std::string DataConfig::*> kColumns[] = {
      {"instruction_column", &DataConfig::instruction_column},
      {"output_column", &DataConfig::output_column},
      {"prompt_column", &DataConfig::prompt_column},
      {"completion_column", &DataConfig::completion_column},
      {"messages_column", &DataConfig::messages_column},
      {"conversations_column", &DataConfig::conversations_column},
      {"text_column", &DataConfig::text_column}};
  static const DataConfig usual;
  for (const auto& [option, member] : kColumns) {
    if (config.*member == usual.*member || find_column(first, config.*member) != nullptr) continue;
    throw Error(
        ExitCode::kData,
        fmt::format("{}: {} is '{}', and the record has: {}", place, option, config.*member, column_list(first)),
        fmt::format("correct {}, or leave it out", option));
  }
}

}  // namespace

RecordFormat detect_format(const Record& first, const DataConfig& config, const std::string& place) {
  require_named_columns(first, config, place);
  const bool automatic = config.dataset_format == "auto";
  bool known = automatic;
  for (const auto format : {RecordFormat::kTokenized, RecordFormat::kMessages, RecordFormat::kShareGpt,
                            RecordFormat::kPromptCompletion, RecordFormat::kAlpaca, RecordFormat::kText}) {
    const bool named = config.dataset_format == format_name(format);
    known = known || named;
    if (!automatic && !named) continue;
    const auto columns = required_columns(format, config);
    if (has_columns(first, columns)) return format;
    if (named) {
      throw Error(ExitCode::kData,
                  fmt::format("{}: dataset_format {} needs the columns {}; the record has: {}", place,
                              config.dataset_format, fmt::join(columns, ", "), column_list(first)),
                  kHint);
    }
  }
  if (!known) {
    throw Error(ExitCode::kUsage, fmt::format("dataset_format: '{}' is not known", config.dataset_format),
                "use auto, alpaca, prompt_completion, messages, sharegpt, text or tokenized");
  }
  throw Error(ExitCode::kData, fmt::format("{}: no known format has these columns: {}", place, column_list(first)),
              kHint);
}

Sample to_sample(const Record& record, RecordFormat format, const DataConfig& config) {
  switch (format) {
    case RecordFormat::kAlpaca:
      return Instruction{text_of(record, config.instruction_column, true), text_of(record, config.input_column, false),
                         text_of(record, config.output_column, true)};
    case RecordFormat::kPromptCompletion: {
      const Record* prompt = find_column(record, config.prompt_column);
      if (prompt != nullptr && prompt->is_array()) return to_prompted_conversation(record, config);
      return PromptCompletion{text_of(record, config.prompt_column, true),
                              text_of(record, config.completion_column, true)};
    }
    case RecordFormat::kMessages:
      return to_conversation(record, config.messages_column);
    case RecordFormat::kShareGpt:
      return to_conversation(record, config.conversations_column);
    case RecordFormat::kText:
      return Text{text_of(record, config.text_column, true)};
    case RecordFormat::kTokenized:
      return to_example(record, config);
  }
  throw Error(ExitCode::kInternal, "a record format without a meaning");
}

}  // namespace fettle::data
