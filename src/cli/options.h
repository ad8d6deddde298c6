// SPDX-License-Identifier: Apache-2.0
/// From a command's arguments to its configuration.
#pragma once

#include <optional>

#include "cli/commands.h"
#include "config/config.h"
#include "config/option_table.h"

namespace fettle::cli {

bool asks_for_help(const Arguments& arguments);

/// Parses, sets the log's level, and logs notices and the options that differ from their defaults. Nothing if --help
/// was asked for: it has been printed. `is_quiet`: logs none of it, for a rank whose options rank 0 logs. Throws Error
/// as config::parse.
std::optional<config::Config> read_options(const Arguments& arguments, config::Command command, bool is_quiet = false);

}  // namespace fettle::cli
