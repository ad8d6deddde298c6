// SPDX-License-Identifier: Apache-2.0
/// Checks that need more than one option.
#pragma once

#include "config/option_table.h"

namespace fettle::config {

struct Parsed;

/// Throws Error{kUsage} where the command lacks an option it requires, {kConfig} where options that were given
/// contradict each other or could have no effect. Only options that the command uses are looked at, and none that a
/// file merely sets to its default: a run's saved configuration and `fettle config --defaults` are files of all
/// options. Where the command line contradicts the file, it wins: the file's option is reset or reported in `notices`.
void validate(Parsed& parsed, Command command);

}  // namespace fettle::config
