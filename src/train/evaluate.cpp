// SPDX-License-Identifier: Apache-2.0
#include "train/evaluate.h"

#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/stop_signal.h"
#include "base/watchdog.h"
#include "hub/safetensors.h"
#include "train/loop.h"
#include "train/tensor_file.h"
#include "train/training_inputs.h"

namespace fettle::train {
namespace {

Evaluation finish(double loss_sum, int64_t target_tokens, int64_t records) {
  if (target_tokens == 0) {
    throw Error(ExitCode::kData, "no token of the evaluation records is a target",
                "look at the masks with `fettle preprocess`");
  }
  const double loss = loss_sum / static_cast<double>(target_tokens);
  if (!std::isfinite(loss)) {
    throw Error(ExitCode::kDiverged, fmt::format("the evaluation loss is {}", loss),
                "the model holds NaN or infinity, or overflows: try bf16=false");
  }
  return {loss, target_tokens, records};
}

/// The documents of one record.
struct Record {
  int64_t place = 0;  ///< in its file
  int64_t begin = 0;  ///< first document
  int64_t end = 0;
};

/// Those of a record follow each other.
std::vector<Record> records_of(const data::TokenDataset& dataset) {
  std::vector<Record> records;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    if (records.empty() || records.back().place != dataset.record(i)) records.push_back({dataset.record(i), i, i});
    records.back().end = i + 1;
  }
  return records;
}

}  // namespace

void write_json_lines(const std::filesystem::path& file, const std::vector<nlohmann::ordered_json>& lines) {
  std::string text;
  for (const nlohmann::ordered_json& line : lines) {
    text += line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n';
  }
  write_file(file, text);
}

Evaluation evaluate(const model::Decoder& model, const data::TokenDataset& dataset, const data::OrderOptions& order,
                    int64_t most_batches) {
  const c10::NoGradGuard no_gradients;
  const data::BatchOrder batches(dataset, order, 0);
  double loss_sum = 0;
  int64_t target_tokens = 0;
  for (int64_t i = 0; i < batches.batches() && most_batches > 0; ++i) {
    const data::Batch batch = batches.batch(i);
    if (batch.target_tokens == 0) continue;
    loss_sum += model.loss_sum(to_tensors(batch)).item<double>();
    target_tokens += batch.target_tokens;
    --most_batches;
  }
  return finish(loss_sum, target_tokens, static_cast<int64_t>(records_of(dataset).size()));
}

Evaluation evaluate_over_ranks(dist::Group& group, const model::Decoder& model, const data::TokenDataset& dataset,
                               const data::OrderOptions& order) {
  const c10::NoGradGuard no_gradients;
  const data::BatchOrder batches(dataset, order, 0);
  double loss_sum = 0;
  double target_tokens = 0;
  const int64_t rounds = (batches.batches() + group.size() - 1) / group.size();
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t i = round * group.size() + group.rank();
    const bool has_batch = i < batches.batches() && stop_signal() == 0;
    const data::Batch batch = has_batch ? batches.batch(i) : data::Batch();
    if (batch.target_tokens == 0) {
      model.take_part();
      continue;
    }
    const SectionMark mark(Section::kEvaluation, fmt::format("batch {} of {}", i + 1, batches.batches()));
    loss_sum += model.loss_sum(to_tensors(batch)).item<double>();
    target_tokens += static_cast<double>(batch.target_tokens);
  }
  const at::Tensor sums = at::tensor({loss_sum, target_tokens, stop_signal() == 0 ? 0.0 : 1.0}, at::kDouble);
  group.all_reduce(sums).wait();
  if (sums[2].item<double>() > 0) throw Error(ExitCode::kPreempted, "an evaluation was stopped");
  return finish(sums[0].item<double>(), sums[1].item<int64_t>(), static_cast<int64_t>(records_of(dataset).size()));
}

Evaluation evaluate_records(const model::Decoder& model, const data::TokenDataset& dataset,
                            const std::filesystem::path& file) {
  std::vector<nlohmann::ordered_json> lines;
  const Evaluation evaluation = evaluate_records(model, dataset, lines);
  write_json_lines(file, lines);
  return evaluation;
}

Evaluation evaluate_records(const model::Decoder& model, const data::TokenDataset& dataset,
                            std::vector<nlohmann::ordered_json>& lines) {
  const c10::NoGradGuard no_gradients;
  double loss_sum = 0;
  int64_t target_tokens = 0;
  const std::vector<Record> records = records_of(dataset);
  for (const Record& record : records) {
    double loss = 0;
    int64_t targets = 0;
    int64_t tokens = 0;
    for (int64_t i = record.begin; i < record.end; ++i) {
      const data::Batch batch = fitted_document(dataset, i, model.device());
      if (batch.target_tokens > 0) loss += model.loss_sum(to_tensors(batch)).item<double>();
      targets += batch.target_tokens;
      tokens += dataset.length(i);
    }
    nlohmann::ordered_json line = {{"record", record.place}, {"loss", nullptr}};
    if (targets > 0) line["loss"] = loss / static_cast<double>(targets);
    line["target_tokens"] = targets;
    line["tokens"] = tokens;
    lines.push_back(std::move(line));
    loss_sum += loss;
    target_tokens += targets;
  }
  return finish(loss_sum, target_tokens, static_cast<int64_t>(records.size()));
}

void write_logits(const model::Decoder& model, const data::TokenDataset& dataset, const std::filesystem::path& file) {
  const c10::NoGradGuard no_gradients;
  std::vector<hub::TensorView> views;
  std::map<std::string, int64_t> documents;
  for (const Record& record : records_of(dataset)) {
    for (int64_t i = record.begin; i < record.end; ++i) {
      const bool whole = record.end - record.begin == 1;
      const std::string part = whole ? "" : fmt::format(".{}", i - record.begin);
      const std::string name = fmt::format("record.{}{}", record.place, part);
      documents[name] = i;
      views.push_back({name, hub::DType::kF32, {dataset.length(i), model.spec().vocab_size}, {}});
    }
  }
  at::Tensor logits;
  hub::write_safetensors(file, views, {}, [&](const hub::TensorView& view) {
    const data::Batch document = fitted_document(dataset, documents.at(view.name), model.device());
    logits = model.logits(model.hidden_states(to_tensors(document)))
                 .to(at::kCPU, at::kFloat)
                 .narrow(0, 0, view.shape[0])
                 .contiguous();
    return bytes_of(logits);
  });
}

}  // namespace fettle::train
