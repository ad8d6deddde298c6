// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "config/config.h"
#include "train/metrics.h"

namespace fettle::cli {

/// What a quantization came to.
struct QuantizationOutcome {
  std::optional<train::Evaluation> before;  ///< none without records
  std::optional<train::Evaluation> after;
  bool on_training_records = false;  ///< there were no others
  int64_t bytes_before = 0;          ///< of all tensors
  int64_t bytes_after = 0;
  double layers_seconds = 0;  ///< finding and writing the layers' numbers, without evaluation
  double seconds = 0;         ///< everything
};

/// all_results.json.
nlohmann::ordered_json quantization_results(const config::QuantizationConfig& options,
                                            const QuantizationOutcome& outcome);

/// Logs the outcome.
void log_quantization(const std::string& folder, const QuantizationOutcome& outcome);

/// Throws Error{kDiverged} if perplexity has risen beyond max_perplexity_ratio.
void require_perplexity(const config::QuantizationConfig& options, const nlohmann::ordered_json& results);

}  // namespace fettle::cli
