// SPDX-License-Identifier: Apache-2.0
/// The `configs:` of a dataset's README.md: which of its files belong to which configuration and split.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fettle::hub {

struct CardConfig {
  std::string name;
  bool is_default = false;
  std::string data_dir;  ///< what the patterns begin at; empty: the repository
  /// Split → patterns, in the card's order; empty where the card leaves that to the names of the files.
  std::vector<std::pair<std::string, std::vector<std::string>>> data_files;
};

/// The configurations of a README's YAML front matter; none where there is no front matter or no `configs` in it.
/// Throws Error{kData} with `subject` for what is no such YAML.
std::vector<CardConfig> read_dataset_card(std::string_view readme, const std::string& subject);

}  // namespace fettle::hub
