// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

#include "config/config.h"
#include "device/device.h"
#include "model/spec.h"

namespace fettle::cli {

/// Quantizes model_name_or_path into output_dir as the options say: weights, config.json, tokenizer, all_results.json
/// with the perplexity before and after, model card, manifest. A quantization that was stopped goes on after its last
/// whole layer. Throws Error as its parts do, {kConfig} if output_dir holds a result and may not be overwritten, and
/// {kDiverged} if perplexity rises beyond max_perplexity_ratio; the model is there all the same. Returns what
/// all_results.json holds.
nlohmann::ordered_json quantize_model(const config::Config& config, const device::Device& device);

/// Throws Error{kConfig} for a model that is quantized already, and for one whose matrices the options do not fit.
void require_quantizable(const config::Config& config, const model::DecoderSpec& spec);

/// Whether the folder holds a model that was quantized with other options.
bool is_made_otherwise(const std::filesystem::path& folder, const config::Config& config);

}  // namespace fettle::cli
