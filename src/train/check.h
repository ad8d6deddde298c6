// SPDX-License-Identifier: Apache-2.0
/// `fettle check`: whether a training run can begin and end, without training.
#pragma once

#include "config/config.h"
#include "dist/launch.h"

namespace fettle::train {

/// Goes through everything that `fettle train` does before its first step, but neither reads the weights' values nor
/// changes output_dir; the tokens that it prepares are in the cache afterwards. Prints what it found on standard
/// output. Throws as fine_tune would, Error{kOutOfMemory} if the run will need more memory than the machine or its
/// container has, and {kIo} if its files will not fit the disk.
void check(const config::Config& config, const dist::Launch& launch);

}  // namespace fettle::train
