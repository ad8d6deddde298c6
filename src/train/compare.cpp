// SPDX-License-Identifier: Apache-2.0
#include "train/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include "base/error.h"
#include "base/utf8.h"
#include "hub/model_folder.h"
#include "hub/path.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

/// Whether a hub's repository is an adapter: what a model is made of is asked for first, since it may be in the cache
/// of a machine that reaches no hub.
bool is_hub_adapter(const std::string& name, const config::ModelConfig& model) {
  try {
    hub::resolve_folder(name, model, "compare");
    return false;
  } catch (const Error& no_model) {
    try {
      hub::resolve_folder(name, model, "adapter_name_or_path");
      return true;
    } catch (const Error&) {
      throw no_model;
    }
  }
}

bool is_adapter(const std::string& name, const config::ModelConfig& model) {
  const fs::path path = name;
  if (!hub::is_folder(path)) return path.extension() != ".gguf" && is_hub_adapter(name, model);
  if (hub::is_file(path / "config.json")) return false;
  if (hub::is_file(path / "adapter_config.json")) return true;
  throw Error(ExitCode::kNoInput, fmt::format("compare: {} has neither config.json nor adapter_config.json", name),
              "give folders or hub names of models, or of adapters of model_name_or_path");
}

std::optional<std::string> spelling(const text::Tokenizer& tokenizer, int32_t id) {
  if (id >= tokenizer.vocab_size()) return std::nullopt;
  try {
    return tokenizer.token(id);
  } catch (const Error&) {  // a gap between the ids
    return std::nullopt;
  }
}

std::string quoted(const std::optional<std::string>& token) {
  return token ? quote(*token) : "absent";
}

std::string cell(const nlohmann::ordered_json& row, const char* key, const char* format) {
  const auto value = row.find(key);
  if (value == row.end()) return "-";
  return value->is_number() ? fmt::format(fmt::runtime(format), value->get<double>()) : "inf";
}

}  // namespace

std::vector<Candidate> candidates(const config::ModelConfig& model, const std::vector<std::string>& more) {
  const bool adapted = !model.adapter_name_or_path.empty();
  std::vector<Candidate> all = {{adapted ? model.adapter_name_or_path : model.model_name_or_path, model}};
  for (const std::string& name : more) {
    Candidate candidate{name, model};
    candidate.options.adapter_name_or_path.clear();
    if (is_adapter(name, model)) {
      candidate.options.adapter_name_or_path = name;
    } else if (name != model.model_name_or_path) {
      candidate.options.model_name_or_path = name;
      candidate.options.model_revision = "main";
      candidate.options.config_name.clear();
    }
    all.push_back(std::move(candidate));
  }
  return all;
}

void require_same_vocabulary(const text::Tokenizer& first, const text::Tokenizer& other, const std::string& name) {
  if (first.fingerprint() == other.fingerprint()) return;
  const auto size = static_cast<int32_t>(std::max(first.vocab_size(), other.vocab_size()));
  for (int32_t id = 0; id < size; ++id) {
    const auto here = spelling(first, id);
    const auto there = spelling(other, id);
    if (here == there) continue;
    throw Error(ExitCode::kConfig,
                fmt::format("compare: {} has another vocabulary than the first model: token {} is {} there and {} here",
                            name, id, quoted(there), quoted(here)),
                "compare models with the same tokenizer; where the ids mean the same nevertheless, set tokenizer_name");
  }
}

std::vector<ModelInputs> load_candidates(const std::vector<Candidate>& candidates) {
  std::vector<ModelInputs> all;
  for (const Candidate& candidate : candidates) {
    const bool is_first_model =
        !all.empty() && candidate.options.model_name_or_path == candidates.front().options.model_name_or_path;
    all.push_back(is_first_model ? all.front() : load_inputs(candidate.options));
    require_same_vocabulary(all.front().tokenizer, all.back().tokenizer, candidate.name);
  }
  return all;
}

nlohmann::ordered_json comparison(const std::vector<Candidate>& candidates,
                                  const std::vector<nlohmann::ordered_json>& results) {
  nlohmann::ordered_json models = nlohmann::ordered_json::array();
  for (size_t i = 0; i < results.size(); ++i) {
    nlohmann::ordered_json row = {{"name", candidates[i].name}};
    row.update(results[i]);
    if (row.contains("eval_loss")) {
      const double difference = row["eval_loss"].get<double>() - results.front()["eval_loss"].get<double>();
      row["loss_difference"] = difference;
      row["perplexity_ratio"] = std::exp(difference);
    }
    models.push_back(std::move(row));
  }
  return {{"models", std::move(models)}};
}

std::vector<std::string> comparison_table(const nlohmann::ordered_json& comparison) {
  std::vector<std::vector<std::string>> rows = {
      {"loss", "difference", "perplexity", "ratio", "targets", "acc", "acc_norm", "model"}};
  for (const nlohmann::ordered_json& row : comparison["models"]) {
    const nlohmann::ordered_json task = row.value("task", nlohmann::ordered_json::object());
    rows.push_back({cell(row, "eval_loss", "{:.5f}"), cell(row, "loss_difference", "{:+.5f}"),
                    cell(row, "perplexity", "{:.4f}"), cell(row, "perplexity_ratio", "{:.5f}"),
                    cell(row, "target_tokens", "{:.0f}"), cell(task, "acc", "{:.4f}"), cell(task, "acc_norm", "{:.4f}"),
                    row["name"].get<std::string>()});
  }
  std::vector<std::string> lines(rows.size());
  for (size_t column = 0; column < rows.front().size(); ++column) {
    size_t width = 0;
    for (const auto& row : rows) width = std::max(width, row[column].size());
    const bool is_empty =
        std::all_of(rows.begin() + 1, rows.end(), [&](const auto& row) { return row[column] == "-"; });
    const bool is_last = column + 1 == rows.front().size();  // the name, to the left
    for (size_t i = 0; i < rows.size() && !is_empty; ++i) {
      lines[i] += is_last ? rows[i][column] : fmt::format("{:>{}}  ", rows[i][column], width);
    }
  }
  return lines;
}

}  // namespace fettle::train
