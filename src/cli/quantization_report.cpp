// SPDX-License-Identifier: Apache-2.0
#include "cli/quantization_report.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "train/result.h"

namespace fettle::cli {
namespace {

using Json = nlohmann::ordered_json;

Json results_of(const config::QuantizationConfig& options, const QuantizationOutcome& outcome) {
  Json results = {{"woq_algo", options.woq_algo},
                  {"woq_bits", options.woq_bits},
                  {"woq_group_size", options.woq_group_size},
                  {"woq_scheme", options.woq_scheme},
                  {"bytes_before", outcome.bytes_before},
                  {"bytes_after", outcome.bytes_after},
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

std::string card(const config::Config& config, const Json& results) {
  const std::string base = std::filesystem::path(config.model.model_name_or_path).filename().string();
  std::string text = "---\n";
  text += fmt::format("base_model: {}\n", nlohmann::json(base).dump());
  text += "base_model_relation: quantized\nlibrary_name: transformers\npipeline_tag: text-generation\n";
  text += fmt::format("tags: [fettle, {}]\n---\n\n", config.quantization.woq_algo);
  text += fmt::format("# {} in {} bits\n\n", base, config.quantization.woq_bits);
  text += "The linear layers' weights are whole numbers with scales; embeddings, head and norms are as they were. ";
  text += "Made with Fettle.\n\n## Results\n\n| measure | value |\n|---|---|\n";
  for (const auto& [name, value] : results.items()) text += fmt::format("| {} | {} |\n", name, value.dump());
  text += "\n## Use\n\n```\nfettle generate --model_name_or_path=path/to/this/folder --prompt=\"...\"\n```\n";
  return text;
}

}  // namespace

void report_quantization(const config::Config& config, const QuantizationOutcome& outcome) {
  const std::filesystem::path folder = config.output.output_dir;
  const Json results = results_of(config.quantization, outcome);
  write_file(folder / "README.md", card(config, results));
  write_file(folder / "all_results.json", results.dump(2) + '\n');
  train::write_manifest(folder);
  log::info("{:.2f} GB became {:.2f} GB in {}", static_cast<double>(outcome.bytes_before) / 1e9,
            static_cast<double>(outcome.bytes_after) / 1e9, folder.string());
  if (!outcome.before || !outcome.after) {
    log::warning("there are no records to measure perplexity on: give validation_file or train_file");
    return;
  }
  const double before = outcome.before->perplexity();
  const double after = outcome.after->perplexity();
  log::info("perplexity {:.4f} before, {:.4f} after{}", before, after,
            outcome.on_training_records ? ", on training records" : "");
  const double limit = config.quantization.max_perplexity_ratio;
  if (limit > 0 && !(after <= limit * before)) {
    throw Error(ExitCode::kDiverged,
                fmt::format("perplexity is {:.4g} after quantization and was {:.4g}: more than {} times as much", after,
                            before, limit),
                "use more woq_bits, a smaller woq_group_size, or another woq_algo; or raise max_perplexity_ratio");
  }
}

}  // namespace fettle::cli
