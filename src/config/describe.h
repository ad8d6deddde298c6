// SPDX-License-Identifier: Apache-2.0
/// What the option table says about itself and about one configuration.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "config/config.h"
#include "config/option_table.h"

namespace fettle::config {

/// Every option by its flat name, in the table's order: what is saved with a run. A configuration file of this content
/// gives the same Config.
nlohmann::ordered_json to_json(const Config& config);

/// The effective configuration for the log: one "section: name=value …" line a section, of the options that `command`
/// uses and that differ from their default.
std::vector<std::string> log_lines(const Config& config, Command command);

/// JSON Schema (draft 2020-12) of a configuration file; other systems' names are marked deprecated.
nlohmann::ordered_json schema();

/// docs/options.md.
std::string markdown();

/// A YAML configuration file of all defaults with the options' help as comments.
std::string defaults();

/// `fettle <command> --help`.
std::string help_text(Command command);

/// `fettle config --schema|--defaults|--markdown`: prints to standard output. Throws Error{kUsage} otherwise.
int config_command(const std::vector<std::string>& arguments);

}  // namespace fettle::config
