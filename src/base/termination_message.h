// SPDX-License-Identifier: Apache-2.0
/// The last words of a program, where Kubernetes shows them (`kubectl describe pod`: a container's terminated message).
#pragma once

#include <string_view>

namespace fettle {

/// Writes `line` to the file that $FETTLE_TERMINATION_MESSAGE_PATH names, if it is set and the file is empty: of
/// several processes the first to fail knows why. Never fails: there is nobody left to tell.
void write_termination_message(std::string_view line) noexcept;

}  // namespace fettle
