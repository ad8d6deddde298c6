// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "config/config.h"

namespace fettle::cli {

/// Refuses a file to write that the command reads: records, a task, or a file of a model, an adapter or a tokenizer. An
/// empty `output` is none. Throws Error{kUsage}.
void require_not_read(const config::Config& config, std::string_view option, const std::string& output);

}  // namespace fettle::cli
