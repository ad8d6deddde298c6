// SPDX-License-Identifier: Apache-2.0
/// From columns to samples: which format a file has, and what its columns mean.
#pragma once

#include <string>

#include "config/config.h"
#include "data/record.h"
#include "data/sample.h"

namespace fettle::data {

enum class RecordFormat { kAlpaca, kPromptCompletion, kMessages, kShareGpt, kText, kTokenized };

/// The name that dataset_format gives it.
std::string format_name(RecordFormat format);

/// The format of a file by the columns of its first record, or the one that dataset_format names. `place` is the
/// record's. Throws Error{kData} listing the columns and the options that name others, {kUsage} for an unknown format.
RecordFormat detect_format(const Record& first, const config::DataConfig& config, const std::string& place);

/// Throws BadRecord naming the column that is missing or of the wrong type. A null is an empty text; a number is never
/// turned into one, because "1.0", "1" and 1 would not be told apart.
Sample to_sample(const Record& record, RecordFormat format, const config::DataConfig& config);

/// The conversation in the columns of `record` (conversation.cpp). Throws BadRecord.
Conversation to_conversation(const Record& record, const std::string& column);
/// The same for a prompt and a completion that are lists of messages.
Conversation to_prompted_conversation(const Record& record, const config::DataConfig& config);

}  // namespace fettle::data
