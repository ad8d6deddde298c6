// SPDX-License-Identifier: Apache-2.0
/// Records in another file format, without a tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "config/config.h"

namespace fettle::data {

/// Throws Error{kUsage} unless the name ends in .json, .jsonl or .csv.
void require_export_format(const std::filesystem::path& output);

/// Writes the training records (find_files, dataset_split) to a file: a JSON array, JSON lines, or CSV with the columns
/// of the first record, in which what is no text stands as JSON and null as nothing. Returns how many. Throws Error:
/// kUsage (the output is an input), kData (a bad record with its place; for CSV a record with another column), kIo.
int64_t export_records(const config::DataConfig& config, const std::filesystem::path& output,
                       const std::string& cache_dir = {});

}  // namespace fettle::data
