// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "config/config.h"
#include "device/device.h"

namespace fettle::cli {

/// Quantizes model_name_or_path into output_dir as the options say: weights, config.json, tokenizer, all_results.json
/// with the perplexity before and after, model card, manifest. A quantization that was stopped goes on after its last
/// whole layer. Throws Error as its parts do, {kUsage} if output_dir holds a result and may not be overwritten, and
/// {kDiverged} if perplexity rises beyond max_perplexity_ratio; the model is there all the same.
void quantize_model(const config::Config& config, const device::Device& device);

}  // namespace fettle::cli
