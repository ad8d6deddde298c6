// SPDX-License-Identifier: Apache-2.0
/// Which of a model repository's files are used here.
#pragma once

#include <filesystem>
#include <string>

#include "hub/cache.h"

namespace fettle::hub {

/// What a repository is wanted for.
enum class ModelPurpose { kModel, kTokenizer, kConfig, kAdapter };

/// The files to download: configuration, tokenizer and templates, and for a model or an adapter its weights as
/// safetensors; not the same weights in other formats, and nothing from subfolders but additional chat templates.
/// `subject` ("model_name_or_path: org/name") begins the message of Error{kData} or {kNoInput} where there are no such
/// weights.
Listing select_model_files(const Listing& files, ModelPurpose purpose, const std::string& subject);

/// Whether a snapshot that nobody has listed serves the purpose.
bool is_model_complete(const std::filesystem::path& snapshot, ModelPurpose purpose);

}  // namespace fettle::hub
