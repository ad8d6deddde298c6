// SPDX-License-Identifier: Apache-2.0
#include "cli/quantization_report.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"

namespace fettle::cli {
using Json = nlohmann::ordered_json;

Json quantization_results(const config::QuantizationConfig& options, const QuantizationOutcome& outcome) {
  Json results = {{"woq_algo", options.woq_algo},
                  {"woq_bits", options.woq_bits},
                  {"woq_group_size", options.woq_group_size},
                  {"woq_scheme", options.woq_scheme},
                  {"bytes_before", outcome.bytes_before},
                  {"bytes_after", outcome.bytes_after},
                  {"quantize_layers_runtime", outcome.layers_seconds},
                  {"quantize_runtime", outcome.seconds}};
  if (outcome.before && outcome.after) {
    results["eval_records"] = outcome.after->records;
    results["eval_on_training_records"] = outcome.on_training_records;
    results["eval_loss_before"] = outcome.before->loss;
    results["eval_loss"] = outcome.after->loss;
    results["eval_perplexity_before"] = outcome.before->perplexity();
    results["eval_perplexity"] = outcome.after->perplexity();
    results["perplexity_ratio"] = outcome.after->perplexity() / outcome.before->perplexity();
  }
  return results;
}

void log_quantization(const std::string& folder, const QuantizationOutcome& outcome) {
  log::info("{:.1f} MB became {:.1f} MB in {}", static_cast<double>(outcome.bytes_before) / 1e6,
            static_cast<double>(outcome.bytes_after) / 1e6, folder);
  if (!outcome.before || !outcome.after) {
    log::warning("there are no records to measure perplexity on: give validation_file or train_file");
    return;
  }
  log::info("perplexity {:.4f} before, {:.4f} after{}", outcome.before->perplexity(), outcome.after->perplexity(),
            outcome.on_training_records ? ", on training records" : "");
}

void require_perplexity(const config::QuantizationConfig& options, const Json& results) {
  if (!results.contains("eval_perplexity")) return;
  // JSON has no infinity: null.
  const auto number = [&results](const char* name) {
    return results[name].is_number() ? results[name].get<double>() : std::numeric_limits<double>::infinity();
  };
  const double before = number("eval_perplexity_before");
  const double after = number("eval_perplexity");
  const double limit = options.max_perplexity_ratio;
  if (limit > 0 && !(after <= limit * before)) {
    throw Error(ExitCode::kDiverged,
                fmt::format("perplexity is {:.4g} after quantization and was {:.4g}: more than {} times as much", after,
                            before, limit),
                "use more woq_bits, a smaller woq_group_size, or another woq_algo; or raise max_perplexity_ratio");
  }
}

}  // namespace fettle::cli
