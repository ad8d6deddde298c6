// SPDX-License-Identifier: Apache-2.0
/// Which files a run reads.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "config/split.h"

namespace fettle::data {

struct DataFiles {
  std::vector<std::filesystem::path> train;
  std::vector<std::filesystem::path> validation;
  /// Which records of all those files: dataset_split and dataset_test_split, where they name a part.
  std::optional<config::SplitExpression> train_slice;
  std::optional<config::SplitExpression> validation_slice;
};

enum class Needed { kTrain, kEvaluation, kBoth };

/// train_file and validation_file as they are, https URLs downloaded. Where train_file is not set, those of
/// dataset_name: of a folder (or its subfolder data) train.* or train-*, and validation, valid, dev, eval or test, the
/// first of these that exists; else of the hub's dataset (hub/dataset.h), of which only what is needed is downloaded.
/// dataset_split and dataset_test_split name other splits, which then must be there if they are needed, and may be the
/// same one. `cache_dir`: ModelConfig's, for what is downloaded.
/// Throws Error{kNoInput} (nothing of that name), {kConfig} (neither option set), and as hub::fetch_dataset.
DataFiles find_files(const config::DataConfig& config, Needed needed = Needed::kBoth,
                     const std::string& cache_dir = {});

}  // namespace fettle::data
