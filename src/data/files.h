// SPDX-License-Identifier: Apache-2.0
/// Which files a run reads.
#pragma once

#include <filesystem>
#include <vector>

#include "config/config.h"

namespace fettle::data {

struct DataFiles {
  std::vector<std::filesystem::path> train;
  std::vector<std::filesystem::path> validation;
};

/// train_file and validation_file as they are; where train_file is not set, the files of the folder dataset_name (or
/// its subfolder data): train.* or train-*, and validation, valid, dev, eval or test, the first of these that exists.
/// Throws Error{kNoInput} (no such folder, nothing in it), {kConfig} (neither option set).
DataFiles find_files(const config::DataConfig& config);

}  // namespace fettle::data
