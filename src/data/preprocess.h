// SPDX-License-Identifier: Apache-2.0
/// The `fettle preprocess` command.
#pragma once

#include "config/config.h"

namespace fettle::data {

/// Prepares the data as `fettle train` would, shows `preview_samples` documents when stdout is a terminal (targets
/// green, the rest grey), and writes the training documents to `output` (JSONL: text, input_ids, labels) if it is set.
/// Returns the exit code; throws Error as prepare does, and before all work: kUsage for an output that is an input or
/// another file that was not written by this command, kNoInput, kPermission or kIo if it cannot be written.
int preprocess(const config::Config& config);

}  // namespace fettle::data
