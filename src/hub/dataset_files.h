// SPDX-License-Identifier: Apache-2.0
/// From a dataset's file names to its splits, by the rules of Hugging Face `datasets`.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "hub/dataset_card.h"

namespace fettle::hub {

struct DatasetSplit {
  std::string name;
  std::vector<std::string> paths;  ///< in the order in which their records follow each other
};

using DatasetSplits = std::vector<DatasetSplit>;

/// Whether `path` matches `pattern`: * is anything within a folder's name, ** also across folders, ? a character and
/// [a-z] one of a set ([!a-z]: none of it).
bool matches_glob(std::string_view pattern, std::string_view path);

/// Extensions that the data readers know, in any case.
bool is_data_file(std::string_view path);

/// The splits of one configuration. Its data_files where it names any; else the files' names tell: data/train-00000-of-
/// 00002.*, a folder train, train.*, and where nothing speaks of a split all is train. Of several formats the commonest
/// counts. Empty if there is no file that can be read.
DatasetSplits find_splits(const std::vector<std::string>& paths, const CardConfig& config);

/// The configuration of this name; without a name the only one, or the default one. `subject` ("dataset_name: x")
/// begins the message of Error{kUsage}, which lists what there is. A dataset without configurations has one that names
/// nothing.
CardConfig choose_config(const std::vector<CardConfig>& configs, const std::string& name, const std::string& subject);

/// The configurations of the branch refs/convert/parquet, whose files are config/split/0000.parquet.
std::vector<CardConfig> converted_configs(const std::vector<std::string>& paths);

/// Whether files named …-00001-of-00003… are there with all their companions.
bool has_all_shards(const std::vector<std::string>& paths);

}  // namespace fettle::hub
