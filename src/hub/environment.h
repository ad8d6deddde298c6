// SPDX-License-Identifier: Apache-2.0
/// What the environment says.
#pragma once

#include <string>
#include <string_view>

namespace fettle::hub {

/// A variable's value, empty where it is not set.
std::string environment(const char* name);

/// `text` without white space around it.
std::string trim(std::string_view text);

}  // namespace fettle::hub
