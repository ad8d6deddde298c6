// SPDX-License-Identifier: Apache-2.0
#include "fuzz/target.h"
#include "hub/dataset_files.h"

void fettle::fuzz::run_target(std::string_view input) {
  const std::vector<std::string> paths = {"data/train-00000-of-00001.parquet", "test.json", "a/b/c.csv"};
  for (const hub::CardConfig& config : hub::read_dataset_card(input, "README.md")) hub::find_splits(paths, config);
}
