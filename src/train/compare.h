// SPDX-License-Identifier: Apache-2.0
/// Several models on the same records: which they are, and whether the same tokens mean the same to them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "config/config.h"
#include "text/tokenizer.h"
#include "train/inputs.h"

namespace fettle::train {

/// A model that is looked at beside others.
struct Candidate {
  std::string name;             ///< as the user wrote it
  config::ModelConfig options;  ///< those given, with this one's model and adapter
};

/// The model (with its adapter) that the options name, and after it each of `more`: a folder or hub name of a model, a
/// .gguf file, or an adapter of model_name_or_path. Throws Error{kNoInput} for what is neither, else as
/// hub::resolve_folder.
std::vector<Candidate> candidates(const config::ModelConfig& model, const std::vector<std::string>& more);

/// What each is loaded from. Throws as load_inputs, and Error{kConfig} where a tokenizer's vocabulary is not the
/// first's: losses per token could not be compared, and ids would mean other texts.
std::vector<ModelInputs> load_candidates(const std::vector<Candidate>& candidates);

/// Throws Error{kConfig} naming the first id that the two spell differently, or that one of them does not have.
void require_same_vocabulary(const text::Tokenizer& first, const text::Tokenizer& other, const std::string& name);

/// {"models": [{"name", …}]}: each of `results` (as evaluation_results, or without a loss) with its name, and where
/// there is a loss "loss_difference" and "perplexity_ratio" to the first.
nlohmann::ordered_json comparison(const std::vector<Candidate>& candidates,
                                  const std::vector<nlohmann::ordered_json>& results);

/// The same as lines of a table for people.
std::vector<std::string> comparison_table(const nlohmann::ordered_json& comparison);

}  // namespace fettle::train
