// SPDX-License-Identifier: Apache-2.0
#include "config/describe.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "config/aliases.h"
#include "config/value.h"

namespace fettle::config {
namespace {

using Json = nlohmann::ordered_json;

Json value_json(const Option& option, Config& config) {
  struct ToJson {
    TextFormat format;
    Json operator()(const bool* value) const { return *value; }
    Json operator()(const int64_t* value) const { return *value; }
    Json operator()(const double* value) const { return *value; }
    Json operator()(const std::optional<double>* value) const { return *value ? Json(**value) : Json(nullptr); }
    Json operator()(const std::string* value) const {
      return format == TextFormat::kJsonObject && !value->empty() ? Json::parse(*value) : Json(*value);
    }
    Json operator()(const std::vector<std::string>* value) const { return *value; }
  };
  return std::visit(ToJson{option.text_format}, option.slot(config));
}

/// The default as it stands in a YAML file; numbers in their shortest form.
std::string default_text(const Option& option) {
  struct ToText {
    std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
    std::string operator()(const int64_t* value) const { return fmt::to_string(*value); }
    std::string operator()(const double* value) const { return fmt::to_string(*value); }
    std::string operator()(const std::optional<double>* value) const {
      return *value ? fmt::to_string(**value) : "null";
    }
    std::string operator()(const std::string* value) const {
      // no is false to YAML 1.1 readers, an empty value is null to all.
      return value->empty() || *value == "no" ? '"' + *value + '"' : *value;
    }
    std::string operator()(const std::vector<std::string>* value) const { return Json(*value).dump(); }
  };
  Config config;
  return std::visit(ToText{}, option.slot(config));
}

/// A bound without ".0" where it is whole.
Json bound(double value) {
  const auto whole = static_cast<int64_t>(value);
  return static_cast<double>(whole) == value ? Json(whole) : Json(value);
}

void add_range(const Range& range, Json& property) {
  if (range.or_minus_one) {
    Json others = Json::object();
    Range rest = range;
    rest.or_minus_one = false;
    add_range(rest, others);
    property["anyOf"] = {{{"const", -1}}, std::move(others)};
    return;
  }
  if (range.minimum) property[range.minimum_excluded ? "exclusiveMinimum" : "minimum"] = bound(*range.minimum);
  if (range.maximum) property[range.maximum_excluded ? "exclusiveMaximum" : "maximum"] = bound(*range.maximum);
}

/// The aliases' spellings; true and false also as booleans, since YAML 1.1 readers, Helm among them, make booleans of
/// the words no, false and true.
void add_spellings(const std::vector<ValueAlias>& aliases, Json& choices) {
  for (const ValueAlias& alias : aliases) {
    choices.push_back(alias.spelling);
    if (alias.spelling == "true" || alias.spelling == "false") choices.push_back(alias.spelling == "true");
  }
  choices.push_back(nullptr);
}

/// Type and constraints of an option's value, without description and default.
Json value_schema(const Option& option) {
  Json property = Json::object();
  const std::string_view type = type_name(option);
  if (type == "list of strings") {
    property["type"] = {"array", "string", "null"};
    property["items"] = {{"type", "string"}, {"minLength", 1}};
  } else if (option.text_format == TextFormat::kJsonObject) {
    property["type"] = {"object", "string", "null"};
    property["additionalProperties"] = {{"type", {"string", "number", "boolean", "null"}}};
  } else if (!option.choices.empty() && !option.choices_or_file) {
    property["enum"] = option.choices;
    add_spellings(option.value_aliases, property["enum"]);
  } else {
    property["type"] = {type, "null"};
    if (option.choices_or_file && !option.value_aliases.empty()) property["type"] = {type, "boolean", "null"};
    if (option.text_format == TextFormat::kBytes) {
      property["type"] = {type, "integer", "null"};
      property["pattern"] = "^[0-9.]+([eE][0-9]+)? *(([KMGTkmgt][Ii]?)?[Bb])?$";
    }
  }
  add_range(option.range, property);
  return property;
}

Json alias_schema(const NameAlias& alias) {
  Json property = Json::object();
  if (alias.values.empty()) {
    property = value_schema(*find_option(alias.option));
  } else {
    add_spellings(alias.values, property["enum"] = Json::array());
  }
  property["description"] = fmt::format("Another name of {}.", alias.option);
  property["deprecated"] = true;
  return property;
}

std::string section_word(std::string_view title) {
  std::string word(title.substr(0, title.find(' ')));
  for (char& c : word) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return word;
}

}  // namespace

Json to_json(const Config& config) {
  Config copy = config;
  Json all = Json::object();
  for (const Section& section : sections()) {
    for (const Option& option : section.options) all[std::string(option.name)] = value_json(option, copy);
  }
  return all;
}

std::vector<std::string> log_lines(const Config& config, Command command) {
  const Json values = to_json(config);
  std::vector<std::string> lines;
  for (const Section& section : sections()) {
    std::string line;
    for (const Option& option : section.options) {
      const std::string name(option.name);
      if (!option.used_by(command) || is_default(option, config)) continue;
      line += fmt::format(" {}={}", name, values[name].dump(-1, ' ', false, Json::error_handler_t::replace));
    }
    if (!line.empty()) lines.push_back(section_word(section.title) + ":" + line);
  }
  return lines;
}

Json schema() {
  Json properties = Json::object();
  const Json default_values = to_json(Config{});
  for (const Section& section : sections()) {
    for (const Option& option : section.options) {
      const std::string name(option.name);
      Json property = value_schema(option);
      property["description"] = option.help;
      property["default"] = default_values[name];
      properties[name] = std::move(property);
    }
  }
  for (const NameAlias& alias : name_aliases()) properties[std::string(alias.name)] = alias_schema(alias);
  for (const IgnoredOption& option : ignored_options()) {
    properties[std::string(option.name)] = {{"description", fmt::format("Has no effect: {}.", option.reason)},
                                            {"deprecated", true}};
  }
  for (const UnavailableOption& option : unavailable_options()) {
    properties[std::string(option.name)] = {
        {"description", "Not available in this version: may only be switched off."},
        {"enum", {false, nullptr, "none", "", 0, -1, Json::array(), Json::object()}},
        {"deprecated", true}};
  }
  return {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
          {"title", "Configuration of fettle"},
          {"type", "object"},
          {"properties", std::move(properties)},
          {"additionalProperties", false}};
}

std::string defaults() {
  std::string text = "# All options of fettle with their defaults.\n";
  for (const Section& section : sections()) {
    text += fmt::format("\n# {}\n", section.title);
    for (const Option& option : section.options) {
      text += fmt::format("\n# {}\n", option.help);
      text += fmt::format("# {}\n{}: {}\n", allowed(option), option.name, default_text(option));
    }
  }
  return text;
}

std::string help_text(Command command) {
  std::string text = fmt::format("Usage: fettle {} [config.yaml|config.json] [--option=value …]\n", to_string(command));
  for (const Section& section : sections()) {
    std::string options;
    for (const Option& option : section.options) {
      if (!option.used_by(command)) continue;
      options +=
          fmt::format("  --{}={}\n      {} ({})\n", option.name, default_text(option), option.help, allowed(option));
    }
    if (!options.empty()) text += fmt::format("\n{}:\n{}", section.title.substr(0, section.title.find(" (")), options);
  }
  return text;
}

namespace {

/// A table cell: | would end it.
std::string cell(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

std::string code(std::string_view text) {
  return text.empty() ? "" : fmt::format("`{}`", text);
}

std::string alias_meaning(const NameAlias& alias) {
  std::string text = code(alias.option);
  std::string_view separator = ": ";
  for (const ValueAlias& value : alias.values) {
    const std::string_view becomes = value.value.empty() ? "no change" : value.value;
    text += fmt::format("{}{} → {}", std::exchange(separator, ", "), value.spelling, becomes);
  }
  return text;
}

}  // namespace

std::string markdown() {
  std::string text =
      "<!-- Printed by `fettle config --markdown`; edit src/config, not this file. -->\n"
      "# Options\n\n"
      "`fettle <command> [config.yaml|config.json] --option=value …`: a file of flat `option: value` lines, then "
      "options\n"
      "on the command line, which win. `null` means the default. A list may also be one string with spaces or commas\n"
      "between its items (only commas for files), or a JSON array: `--train_file=[\"a.jsonl\",\"b.jsonl\"]`. An "
      "unknown\n"
      "option, an option that contradicts another, and an option on the command line that the command does not use "
      "are\n"
      "errors. `fettle check` takes what `fettle train` takes; what `fettle verify` takes, its `--help` says.\n";
  for (const Section& section : sections()) {
    text += fmt::format("\n## {}\n\n| option | value | default | meaning | commands |\n|---|---|---|---|---|\n",
                        section.title);
    for (const Option& option : section.options) {
      std::string commands;
      for (const Command command :
           {Command::kTrain, Command::kEval, Command::kGenerate, Command::kChat, Command::kPreprocess,
            Command::kDownload, Command::kMerge, Command::kQuantize, Command::kBenchmark, Command::kExport}) {
        if (option.used_by(command)) commands += (commands.empty() ? "" : " ") + std::string(to_string(command));
      }
      text += fmt::format("| {} | {} | {} | {} | {} |\n", code(option.name), cell(allowed(option)),
                          code(default_text(option)), cell(option.help), commands);
    }
  }
  text += "\n## Names of other systems\n\nAccepted; one log line names the option.\n\n| name | here |\n|---|---|\n";
  for (const NameAlias& alias : name_aliases())
    text += fmt::format("| {} | {} |\n", code(alias.name), alias_meaning(alias));
  text += "\n## Accepted without effect\n\nOne log line says so.\n\n| name | reason |\n|---|---|\n";
  for (const IgnoredOption& option : ignored_options())
    text += fmt::format("| {} | {} |\n", code(option.name), option.reason);
  text +=
      "\n## Not available in this version\n\nRefused unless switched off (false, none, 0, -1 or empty).\n\n"
      "| name | instead |\n|---|---|\n";
  for (const UnavailableOption& option : unavailable_options()) {
    text += fmt::format("| {} | {} |\n", code(option.name), option.hint);
  }
  return text;
}

int config_command(const std::vector<std::string>& arguments) {
  std::string text;
  if (arguments.size() == 1 && arguments[0] == "--schema") {
    text = schema().dump(2) + "\n";
  } else if (arguments.size() == 1 && arguments[0] == "--defaults") {
    text = defaults();
  } else if (arguments.size() == 1 && arguments[0] == "--markdown") {
    text = markdown();
  } else {
    throw Error(ExitCode::kUsage, "fettle config needs one of --schema, --defaults, --markdown",
                "for instance fettle config --defaults > config.yaml");
  }
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw Error(ExitCode::kIo, "cannot write to standard output", "check where it goes");
  }
  return static_cast<int>(ExitCode::kOk);
}

}  // namespace fettle::config
