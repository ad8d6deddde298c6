// SPDX-License-Identifier: Apache-2.0
// The command line is read here and not by CLI11: the table already has every name, type, range and help text, files
// and arguments share one path from text to member, and a flat --key=value needs no more than read_arguments.
#include "config/parse.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
#include "config/aliases.h"
#include "config/validate.h"
#include "config/value.h"

namespace fettle::config {
namespace {

namespace fs = std::filesystem;

template <typename Named>
const Named* find_named(const std::vector<Named>& all, std::string_view name) {
  const auto found = std::ranges::find(all, name, &Named::name);
  return found == all.end() ? nullptr : &*found;
}

bool is_switched_off(const Value& value) {
  if (value.kind == Value::Kind::kNull) return true;
  if (value.kind == Value::Kind::kFlag) return false;
  if (value.kind != Value::Kind::kScalar) return value.scalars.empty();
  const std::string& text = value.scalars[0].text;
  static const std::vector<std::string_view> kOff = {"", "none", "None", "null", "-1"};
  return parse_bool(text) == false || std::ranges::find(kOff, text) != kOff.end();
}

/// Applies entries of one source, a file or the command line, to a Parsed.
class Source {
 public:
  Source(Parsed& parsed, std::optional<Command> only_for) : parsed_(parsed), only_for_(only_for) {}

  void apply(const Entry& entry) {
    if (const Option* option = find_option(entry.key)) return set(*option, entry);
    if (const NameAlias* alias = find_named(name_aliases(), entry.key)) return apply_alias(*alias, entry);
    if (const IgnoredOption* ignored = find_named(ignored_options(), entry.key)) {
      return notice(fmt::format("{} ({}) has no effect: {}", entry.key, entry.where, ignored->reason));
    }
    if (const UnavailableOption* unavailable = find_named(unavailable_options(), entry.key)) {
      if (!is_switched_off(entry.value)) {
        throw Error(ExitCode::kUsage,
                    fmt::format("option {} ({}) is not available in this version", entry.key, entry.where),
                    std::string(unavailable->hint));
      }
      return notice(fmt::format("{} ({}) has no effect: it is off in this version anyway", entry.key, entry.where));
    }
    refuse_unknown(entry);
  }

 private:
  void set(const Option& option, const Entry& entry) {
    if (only_for_ && !option.used_by(*only_for_)) {
      throw Error(ExitCode::kUsage, fmt::format("fettle {} does not use --{}", to_string(*only_for_), option.name),
                  "remove it");
    }
    const auto [earlier, is_first] = keys_.emplace(option.name, entry);
    // On the command line the last one wins, so that a script's arguments can be overridden.
    if (!is_first && entry.where != kCommandLine && entry.value != earlier->second.value) {
      throw Error(ExitCode::kConfig,
                  fmt::format("{} ({}) and {} ({}) are the same option with two values", earlier->second.key,
                              earlier->second.where, entry.key, entry.where),
                  "keep " + std::string(option.name));
    }
    if (assign(option, entry.value, entry.where, parsed_.config)) {
      parsed_.given.insert_or_assign(std::string(option.name), entry.where);
    } else {
      parsed_.given.erase(std::string(option.name));
    }
  }

  void apply_alias(const NameAlias& alias, const Entry& entry) {
    Entry renamed = entry;
    if (!alias.values.empty()) {
      const std::string_view text = translate(alias, entry);
      if (text.empty()) {
        return notice(fmt::format("{} ({}) has no effect: {} decides", entry.key, entry.where, alias.option));
      }
      renamed.value = {Value::Kind::kScalar, {{std::string(text), true}}, {}};
    }
    if (!alias.own_to || alias.own_to != only_for_) {
      notice(fmt::format("{} ({}) is called {} here{}", entry.key, entry.where, alias.option,
                         alias.values.empty() ? "" : ": " + renamed.value.scalars[0].text));
    }
    set(*find_option(alias.option), renamed);
  }

  /// The option's value for the alias's, empty where that leaves the option alone.
  static std::string_view translate(const NameAlias& alias, const Entry& entry) {
    if (entry.value.kind == Value::Kind::kNull) return {};
    std::string text = entry.value.kind == Value::Kind::kFlag ? "true" : "";
    if (entry.value.kind == Value::Kind::kScalar) text = entry.value.scalars[0].text;
    if (const std::optional<bool> flag = parse_bool(text)) text = *flag ? "true" : "false";
    std::string spellings;
    for (const ValueAlias& value : alias.values) {
      if (value.spelling == text) return value.value;
      spellings += (spellings.empty() ? "" : ", ") + std::string(value.spelling);
    }
    throw Error(ExitCode::kUsage,
                fmt::format("{} = {} ({}) is not a known choice", entry.key, quote(text), entry.where),
                fmt::format("give one of {}, or set {}", spellings, alias.option));
  }

  [[noreturn]] static void refuse_unknown(const Entry& entry) {
    std::vector<std::string_view> names;
    for (const Section& section : sections()) {
      for (const Option& option : section.options) names.push_back(option.name);
    }
    for (const NameAlias& alias : name_aliases()) names.push_back(alias.name);
    const std::string_view close = nearest(entry.key, names);
    std::string hint =
        close.empty() ? "fettle config --defaults lists all options" : fmt::format("did you mean {}?", close);
    if (entry.value.kind == Value::Kind::kMap) hint = "options are flat: write its keys without it";
    throw Error(ExitCode::kUsage, fmt::format("unknown option {} ({})", quote(entry.key), entry.where), hint);
  }

  void notice(std::string line) {
    if (std::ranges::find(parsed_.notices, line) == parsed_.notices.end()) parsed_.notices.push_back(std::move(line));
  }

  Parsed& parsed_;
  std::optional<Command> only_for_;         // arguments are for one command, a file may serve several
  std::map<std::string_view, Entry> keys_;  // option → the first entry that set it
};

std::vector<Entry> read_file_entries(const std::string& file) {
  std::error_code error;
  const fs::path path(file);
  if (fs::is_directory(path, error)) {
    throw Error(ExitCode::kNoInput, fmt::format("{} is a folder, not a configuration file", file), "give the file");
  }
  const uintmax_t size = fs::file_size(path, error);
  if (!error && size > kLargestFile) {
    throw Error(ExitCode::kConfig, fmt::format("{} has {} bytes, more than a configuration can have", file, size),
                "give a file of options, not of data");
  }
  return read_entries(read_file(path), path.extension() == ".json" ? Syntax::kJson : Syntax::kYaml, file);
}

}  // namespace

Parsed parse(const std::vector<std::string>& arguments, Command command) {
  const Arguments read = read_arguments(arguments);
  Parsed parsed;
  if (read.file) {
    Source source(parsed, std::nullopt);
    for (const Entry& entry : read_file_entries(*read.file)) source.apply(entry);
  }
  Source source(parsed, command);
  for (const Entry& entry : read.entries) source.apply(entry);
  validate(parsed, command);
  return parsed;
}

Parsed parse_text(std::string_view text, Syntax syntax, const std::string& name) {
  Parsed parsed;
  Source source(parsed, std::nullopt);
  for (const Entry& entry : read_entries(text, syntax, name)) source.apply(entry);
  return parsed;
}

}  // namespace fettle::config
