// SPDX-License-Identifier: Apache-2.0
/// A dataset of the hub as files on this machine.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "config/split.h"

namespace fettle::hub {

struct DatasetRequest {
  const config::DataConfig& data;
  std::string cache_dir = {};   ///< as ModelConfig has it
  bool need_train = true;       ///< the split that dataset_split names, or train
  bool need_evaluation = true;  ///< the split that dataset_test_split names; else validation or test, if there is one
};

struct DatasetFiles {
  std::vector<std::filesystem::path> train;
  std::vector<std::filesystem::path> evaluation;
};

/// Finds the splits of `dataset_name` at `dataset_revision`: by the README's `configs` (of which dataset_config_name
/// chooses one), else by the files' names. A dataset that is made by a script, or has no file that can be read, is
/// taken from refs/convert/parquet, where the hub keeps such a copy. Only the needed splits are downloaded. Throws
/// Error: as fetch_snapshot; kUsage (which configuration?), kNoInput (no such split, which it names; no files).
DatasetFiles fetch_dataset(const DatasetRequest& request);

}  // namespace fettle::hub
