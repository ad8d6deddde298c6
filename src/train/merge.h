// SPDX-License-Identifier: Apache-2.0
/// `fettle merge`: adapters added into their base, as one ordinary model.
#pragma once

#include <c10/core/Device.h>

#include <nlohmann/json.hpp>

#include "config/config.h"

namespace fettle::train {

/// Writes the merged model to output_dir in the base's types, names and files (see MergedWeights), then compares its
/// logits with those of base and adapters, unless verify_saved_model is false; the models are loaded for that one after
/// the other, in float32. config.json comes after the comparison: what was interrupted, or differs, is no model.
/// Returns what all_results.json holds. Throws Error as what it calls; {kConfig} for a quantized base and an
/// output_dir that holds something else; {kDiverged} for NaN or infinity; {kInternal} as compare_merged.
nlohmann::ordered_json merge(const config::Config& config, at::Device device);

}  // namespace fettle::train
