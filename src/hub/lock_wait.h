// SPDX-License-Identifier: Apache-2.0
/// Waiting for another process, and saying so.
#pragma once

#include <functional>
#include <string>

#include "base/file_lock.h"

namespace fettle::hub {

/// Waits until no other process has the lock, or until `is_needless`. `what` is what the other process does, for the
/// log. A process that is stopped keeps its lock, and this waits as long; the log says so every minute. Throws
/// Error{kPreempted} after a stop signal.
void wait_for_lock(FileLock& lock, const std::string& what, const std::function<bool()>& is_needless);

}  // namespace fettle::hub
