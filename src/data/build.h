// SPDX-License-Identifier: Apache-2.0
/// Records of one split → documents.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "config/config.h"
#include "config/split.h"
#include "data/prompt.h"
#include "data/storage.h"

namespace fettle::data {

/// What belongs to a split.
struct SplitPlan {
  std::string name;  ///< train, validation
  std::vector<std::filesystem::path> files;
  std::vector<bool> members;  ///< by the record's place in all the files; empty: every record
  int64_t limit = -1;         ///< records taken at most; -1: all
};

/// Records in all the files, good or bad; what is between records is checked, records are not. Throws as the readers
/// do.
int64_t count_records(const std::vector<std::filesystem::path>& files, const config::DataConfig& config);

/// The records of a part of a split that has `records`, with a warning where it speaks of more. Throws Error{kConfig}
/// if there are none in it.
config::RecordRange slice_range(const config::SplitExpression& slice, int64_t records);

/// Reads, templates, tokenizes and truncates (or splits) the records of a split on all cores, in order.
/// Throws Error{kData}: a bad record (on_bad_record: fail), no records at all, no document left.
std::shared_ptr<TokenDataset::Storage> build_split(const SplitPlan& plan, const config::DataConfig& config,
                                                   const PromptBuilder& prompts, std::string fingerprint);

}  // namespace fettle::data
