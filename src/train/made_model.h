// SPDX-License-Identifier: Apache-2.0
/// The folder of a model that is made of other weights, merged or quantized: what it may be, and its files in an order
/// in which a model that is not whole has no config.json, and is made anew by the same command.
#pragma once

#include <c10/core/ScalarType.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hub/model_folder.h"
#include "text/tokenizer.h"

namespace fettle::train {

/// Stands for what is beside the weights: configuration and tokenizer.
std::string description_fingerprint(const hub::ModelFolder& base, const text::Tokenizer& tokenizer);

/// all_results.json of a merged or quantized model that is finished; nothing for what is none.
std::optional<nlohmann::ordered_json> results_of_model(const std::filesystem::path& folder);

/// What was made in the folder with this identity, if its files are those of its manifest; else nothing.
std::optional<nlohmann::ordered_json> made_earlier(const std::filesystem::path& folder, const std::string& identity);

/// Refuses a folder that is among those that are `read`, or holds a training. Throws Error{kConfig}.
void require_place_for_model(const std::filesystem::path& folder, const std::vector<std::string>& read);

/// Unless `overwrite`, refuses a folder that is not empty and does not hold a model that this program was stopped in
/// making. Throws Error{kConfig}.
void require_free(const std::filesystem::path& folder, bool overwrite);

/// Removes what describes an earlier model, before its weights are replaced.
void begin_model(const std::filesystem::path& folder);

struct MadeModel {
  const hub::ModelFolder& description;  ///< whose config.json it gets
  const text::Tokenizer& tokenizer;
  at::ScalarType type;             ///< of its unquantized weights
  nlohmann::ordered_json results;  ///< all_results.json
  std::string identity;            ///< what it was made of: made_earlier's
};
/// Writes what is beside the weights, manifest.sha256 too. Throws Error{kIo} or {kPermission}.
void finish_model(const std::filesystem::path& folder, const MadeModel& model);

}  // namespace fettle::train
