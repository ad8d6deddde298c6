// SPDX-License-Identifier: Apache-2.0
/// What to do about a run that needs more memory than there is.
#pragma once

#include <string>

#include "config/config.h"

namespace fettle::train {

/// The three cheapest changes of these options that save memory, cheapest first, as the hint of an error.
std::string memory_remedies(const config::Config& config);

}  // namespace fettle::train
