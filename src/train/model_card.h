// SPDX-License-Identifier: Apache-2.0
/// README.md of a saved result.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "config/config.h"

namespace fettle::train {

/// Markdown with the hub's metadata block: the base model, the data, the options that differ from the defaults, the
/// results and how to use it. `results` is all_results.json.
std::string model_card(const config::Config& config, const nlohmann::ordered_json& results);

/// The same of a merged model: the base and `merged_adapters` of the results instead of records and options.
std::string merged_model_card(const config::Config& config, const nlohmann::ordered_json& results);

/// The same of a quantized model.
std::string quantized_model_card(const config::Config& config, const nlohmann::ordered_json& results);

/// The arguments, each after a blank, that load the base as the run had it: " --load_in_4bit=true"; empty if it was not
/// quantized.
std::string quantization_arguments(const config::ModelConfig& model);

/// The arguments, each after a blank, that prompt a model as its records did: " --prompt=\"...\"", after --raw_prompt
/// for plain text, or the run's prompt_template.
std::string prompt_arguments(const config::DataConfig& data);

}  // namespace fettle::train
