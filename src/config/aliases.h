// SPDX-License-Identifier: Apache-2.0
/// Names that are no options of Fettle but are known from the system it replaces and from transformers, TRL and PEFT:
/// other names of its options, options that change nothing here, and options that this version cannot obey.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "config/option_table.h"

namespace fettle::config {

/// Another name of an option; using it is answered with one line that gives the option's own name.
struct NameAlias {
  std::string_view name;
  std::string_view option;
  /// If not empty: the only values it takes and what the option becomes; an empty value leaves the option alone.
  std::vector<ValueAlias> values = {};
  /// The command on whose command line it is a name of its own, taken without that line.
  std::optional<Command> own_to = {};
};

/// Accepted with any value; one line says that it has no effect.
struct IgnoredOption {
  std::string_view name;
  std::string_view reason;
};

/// Accepted only when switched off (false, none, empty, 0, -1), refused otherwise.
struct UnavailableOption {
  std::string_view name;
  std::string_view hint;  ///< what to do instead
};

const std::vector<NameAlias>& name_aliases();
const std::vector<IgnoredOption>& ignored_options();
const std::vector<UnavailableOption>& unavailable_options();

}  // namespace fettle::config
