// SPDX-License-Identifier: Apache-2.0
/// A command's arguments, and the file they may name, to its configuration.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "config/option_table.h"
#include "config/reader.h"

namespace fettle::config {

struct Parsed {
  Config config;
  std::map<std::string, std::string> given;  ///< options set explicitly → where: "config.yaml:3", "the command line"
  std::vector<std::string> notices;  ///< one line each, for the caller to log: other names, options without effect
};

/// Parses and validates what follows the command's name: an optional YAML or JSON file (by its ending), then
/// --key=value. The command line wins over the file; the last of equal options wins on the command line.
/// Throws Error: kUsage (unknown option, bad value, required option missing), kNoInput or kPermission (the file),
/// kConfig (a file that is no flat map of options; options that contradict each other).
Parsed parse(const std::vector<std::string>& arguments, Command command);

/// Parses one document's options over the defaults, without validation across options. `name` stands for the text in
/// messages. Throws as parse.
Parsed parse_text(std::string_view text, Syntax syntax, const std::string& name);

}  // namespace fettle::config
