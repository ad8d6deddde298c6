// SPDX-License-Identifier: Apache-2.0
#include "cli/options.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <string>

#include "base/log.h"
#include "config/describe.h"
#include "config/parse.h"

namespace fettle::cli {
namespace {

log::Level level_named(const std::string& name) {
  static const std::map<std::string, log::Level> levels = {
      {"debug", log::Level::kDebug}, {"warning", log::Level::kWarning}, {"error", log::Level::kError}};
  const auto found = levels.find(name);
  return found == levels.end() ? log::Level::kInfo : found->second;
}

}  // namespace

bool asks_for_help(const Arguments& arguments) {
  return std::ranges::any_of(arguments, [](const std::string& each) { return each == "--help" || each == "-h"; });
}

std::optional<config::Config> read_options(const Arguments& arguments, config::Command command, bool is_quiet) {
  if (asks_for_help(arguments)) {
    fmt::print("{}", config::help_text(command));
    return std::nullopt;
  }
  config::Parsed parsed = config::parse(arguments, command);
  log::set_level(level_named(parsed.config.output.log_level));
  if (is_quiet) return std::move(parsed.config);
  for (const std::string& notice : parsed.notices) log::warning("{}", notice);
  for (const std::string& line : config::log_lines(parsed.config, command)) log::info("{}", line);
  return std::move(parsed.config);
}

}  // namespace fettle::cli
