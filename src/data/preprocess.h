// SPDX-License-Identifier: Apache-2.0
/// The `fettle preprocess` command.
#pragma once

#include "config/config.h"

namespace fettle::data {

/// Prepares the data as `fettle train` would, shows `preview_samples` documents when stdout is a terminal (targets
/// green, the rest grey), and writes the training documents to `output` (JSONL: text, input_ids, labels) if it is set.
/// Returns the exit code; throws Error as prepare does, and kIo when the output cannot be written.
int preprocess(const config::Config& config);

}  // namespace fettle::data
