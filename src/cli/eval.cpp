// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/outputs.h"
#include "data/task.h"
#include "train/compare.h"
#include "train/evaluate.h"
#include "train/inputs.h"
#include "train/task_score.h"
#include "train/training_inputs.h"

namespace fettle::cli {
namespace {

using Json = nlohmann::ordered_json;

/// What every model is asked.
struct Questions {
  std::optional<data::TokenDataset> records;
  std::optional<data::Task> task;
};

bool has_records(const config::DataConfig& data) {
  return !data.validation_file.empty() || !data.dataset_name.empty() ||
         (!data.train_file.empty() && data.validation_split_percentage > 0);
}

data::Task read_task(const config::EvalConfig& options, const std::vector<train::ModelInputs>& models) {
  int64_t longest = models.front().spec.max_positions;
  for (const train::ModelInputs& model : models) longest = std::min(longest, model.spec.max_positions);
  data::Task task = data::read_task(options.task_file, models.front().tokenizer, longest);
  log::info("task: {} items", task.items.size());
  if (task.truncated > 0) {
    log::warning("task: the contexts of {} choices lose their beginning: a model reads {} tokens", task.truncated,
                 longest);
  }
  return task;
}

Questions read_questions(const config::Config& config, const std::vector<train::ModelInputs>& models) {
  Questions questions;
  if (has_records(config.data)) {
    questions.records =
        data::prepare(config.data, models.front().tokenizer, /*need_train=*/false, config.model.cache_dir).validation;
    if (!questions.records) {
      throw Error(ExitCode::kUsage, "fettle eval needs evaluation records", "give validation_file");
    }
  }
  if (!config.eval.task_file.empty()) questions.task = read_task(config.eval, models);
  for (const train::ModelInputs& model : models) {
    if (questions.records) train::require_vocabulary(model, *questions.records);
    if (questions.task) train::require_vocabulary(model, *questions.task);
  }
  return questions;
}

/// What the files of all models hold.
struct OutputLines {
  std::vector<Json> records;
  std::vector<Json> items;
};

Json evaluate_one(const model::Decoder& model, const config::Config& config, const Questions& questions,
                  OutputLines& lines) {
  Json results = Json::object();
  if (questions.records) {
    const auto evaluation = config.eval.per_record.empty()
                                ? train::evaluate(model, *questions.records,
                                                  train::evaluation_order(config, *questions.records, model.device()))
                                : train::evaluate_records(model, *questions.records, lines.records);
    if (!config.eval.logits_file.empty()) train::write_logits(model, *questions.records, config.eval.logits_file);
    results = train::evaluation_results(evaluation);
  }
  if (questions.task) {
    const int64_t rows = config.training.per_device_eval_batch_size;
    const auto scores = train::score(model, *questions.task, {rows * config.data.max_seq_length, rows});
    lines.items = train::task_lines(*questions.task, scores);
    results["task"] = train::task_results(*questions.task, scores);
  }
  return results;
}

/// The lines of one of several models say whose they are.
void append_named(std::vector<Json>& all, std::vector<Json>& lines, const std::string& name) {
  for (Json& line : lines) {
    Json named = {{"model", name}};
    named.update(line);
    all.push_back(std::move(named));
  }
}

Json evaluate_all(const std::vector<train::Candidate>& candidates, const std::vector<train::ModelInputs>& inputs,
                  const config::Config& config, const Questions& questions, const train::ComputeOptions& compute) {
  std::vector<Json> results;
  OutputLines all;
  for (size_t i = 0; i < candidates.size(); ++i) {  // one model in memory at a time
    if (candidates.size() > 1) log::info("model {} of {}: {}", i + 1, candidates.size(), candidates[i].name);
    const model::Decoder model = train::load_model(inputs[i], candidates[i].options, compute);
    OutputLines lines;
    results.push_back(evaluate_one(model, config, questions, lines));
    if (candidates.size() == 1) {
      all = std::move(lines);
    } else {
      append_named(all.records, lines.records, candidates[i].name);
      append_named(all.items, lines.items, candidates[i].name);
    }
  }
  if (!config.eval.per_record.empty()) train::write_json_lines(config.eval.per_record, all.records);
  if (!config.eval.task_output.empty()) train::write_json_lines(config.eval.task_output, all.items);
  if (candidates.size() == 1) return results.front();
  Json comparison = train::comparison(candidates, results);
  for (const std::string& line : train::comparison_table(comparison)) log::info("{}", line);
  return comparison;
}

}  // namespace

int evaluate(const Arguments& arguments) {
  const auto config = read_options(arguments, config::Command::kEval);
  if (!config) return 0;
  require_not_read(*config, "per_record", config->eval.per_record);
  require_not_read(*config, "logits_file", config->eval.logits_file);
  require_not_read(*config, "task_output", config->eval.task_output);
  const device::Device device = train::start_device(config->device);
  log::info("{}", device.description());
  const std::vector<train::Candidate> candidates = train::candidates(config->model, config->eval.compare);
  const std::vector<train::ModelInputs> inputs = train::load_candidates(candidates);
  const Questions questions = read_questions(*config, inputs);
  const Json results = evaluate_all(candidates, inputs, *config, questions,
                                    {train::compute_type(config->training), device.torch_device});
  fmt::print("{}\n", results.dump(-1, ' ', false, Json::error_handler_t::replace));
  return 0;
}

}  // namespace fettle::cli
