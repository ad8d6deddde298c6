// SPDX-License-Identifier: Apache-2.0
#include "data/prompts.h"

#include <fmt/format.h>

#include "base/error.h"
#include "config/config.h"
#include "data/reader.h"

namespace fettle::data {
namespace {

std::string prompt_of(const Record& record, const char* column) {
  const auto prompt = record.find(column);
  if (prompt == record.end()) throw BadRecord(fmt::format("there is no \"{}\"", column));
  if (!prompt->is_string()) throw BadRecord(fmt::format("\"{}\" is {}, not text", column, kind_of(*prompt)));
  if (prompt->get_ref<const std::string&>().empty()) throw BadRecord(fmt::format("\"{}\" is empty", column));
  return prompt->get<std::string>();
}

}  // namespace

std::vector<std::string> read_prompts(const std::filesystem::path& file) {
  const char* column = file_format(file) == FileFormat::kText ? "text" : "prompt";
  const auto reader = open_records(file, config::DataConfig());
  std::vector<std::string> prompts;
  for (RawRecord raw; reader->next(raw);) {
    try {
      prompts.push_back(prompt_of(reader->parse(raw), column));
    } catch (const BadRecord& bad) {
      throw Error(ExitCode::kData, fmt::format("prompts_file: {}: {}", reader->place(raw), bad.what()),
                  "a line is {\"prompt\": \"…\"}, or of a .txt file the prompt itself");
    }
  }
  if (prompts.empty()) {
    throw Error(ExitCode::kData, fmt::format("prompts_file: {} has no prompts", file.string()), "write one a line");
  }
  return prompts;
}

}  // namespace fettle::data
