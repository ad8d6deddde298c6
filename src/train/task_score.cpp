// SPDX-License-Identifier: Apache-2.0
#include "train/task_score.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "data/batch.h"
#include "device/device.h"
#include "ops/to_device.h"
#include "train/loop.h"

namespace fettle::train {
namespace {

using Scores = std::vector<std::vector<ChoiceScore>>;

struct ChoicePlace {
  size_t item;
  size_t choice;
};

/// Tokens that the model reads once, and the choices that are scored by it.
struct Document {
  const std::vector<int32_t>* input;
  std::vector<ChoicePlace> choices;
};

std::vector<Document> documents_of(const data::Task& task) {
  std::vector<Document> documents;
  for (size_t item = 0; item < task.items.size(); ++item) {
    const auto first = std::ssize(documents);
    const auto& encodings = task.items[item].encodings;
    for (size_t choice = 0; choice < encodings.size(); ++choice) {
      const std::vector<int32_t>& input = encodings[choice].input;
      const auto same = std::find_if(documents.begin() + first, documents.end(),
                                     [&input](const Document& document) { return *document.input == input; });
      if (same != documents.end()) {
        same->choices.push_back({item, choice});
      } else {
        documents.push_back({&input, {{item, choice}}});
      }
    }
  }
  return documents;
}

void append(data::Batch& batch, const std::vector<int32_t>& input) {
  batch.tokens.insert(batch.tokens.end(), input.begin(), input.end());
  batch.labels.resize(batch.tokens.size(), data::kIgnore);
  for (int64_t t = 0; t < std::ssize(input); ++t) batch.positions.push_back(t);
  batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
}

/// Predictions of a batch: at row rows[i] of the stream token tokens[i] of a choice.
struct Targets {
  std::vector<int64_t> rows;
  std::vector<int64_t> tokens;
  std::vector<ChoicePlace> places;
};

class Scorer {
 public:
  Scorer(const model::Decoder& model, const data::Task& task) : model_(model), task_(task) {
    for (const data::TaskItem& item : task.items) {
      scores_.emplace_back(item.choices.size(), ChoiceScore{0, true});
    }
  }

  /// Computes what has been collected.
  void flush() {
    if (batch_.tokens.empty()) return;
    const at::Tensor hidden = model_.hidden_states(to_tensors(batch_));
    // float32 logits of so many rows at once
    const auto chunk = std::max<int64_t>(16, (64 << 20) / (4 * model_.spec().vocab_size));
    for (int64_t first = 0; first < std::ssize(targets_.rows); first += chunk) {
      add_scores(hidden, first, std::min(chunk, std::ssize(targets_.rows) - first));
    }
    batch_ = {};
    targets_ = {};
  }

  void add(const Document& document) {
    if (batch_.cu_seqlens.empty()) batch_.cu_seqlens.push_back(0);
    append(batch_, *document.input);
    for (const ChoicePlace& place : document.choices) {
      const auto& continuation = task_.items[place.item].encodings[place.choice].continuation;
      int64_t row = std::ssize(batch_.tokens) - std::ssize(continuation);
      for (const int32_t token : continuation) {
        targets_.rows.push_back(row++);
        targets_.tokens.push_back(token);
        targets_.places.push_back(place);
      }
    }
  }

  /// Fills the last row, so that all rows of all batches have one length.
  void fill_row(int64_t length) {
    batch_.row_length = length;
    batch_.one_document_a_row = true;
    const int64_t rest = std::ssize(batch_.tokens) % length;
    data::append_filling(batch_, rest == 0 ? 0 : length - rest);
  }

  [[nodiscard]] int64_t tokens() const { return std::ssize(batch_.tokens); }
  Scores finish() {
    flush();
    return std::move(scores_);
  }

 private:
  void add_scores(const at::Tensor& hidden, int64_t first, int64_t count) {
    const auto part = [first, count](const std::vector<int64_t>& values) {
      return at::tensor(c10::ArrayRef<int64_t>(values).slice(static_cast<size_t>(first), static_cast<size_t>(count)),
                        at::kLong);
    };
    const at::Tensor rows = hidden.index_select(0, ops::to_device(part(targets_.rows), hidden.device()));
    const at::Tensor tokens = ops::to_device(part(targets_.tokens), hidden.device());
    const at::Tensor logits = model_.logits(rows).to(at::kFloat);  // [rows, V]
    const at::Tensor likelihoods = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1).to(at::kCPU);
    const at::Tensor hits = (logits.argmax(-1) == tokens).to(at::kCPU);
    for (int64_t i = 0; i < count; ++i) {
      const ChoicePlace& place = targets_.places[static_cast<size_t>(first + i)];
      ChoiceScore& score = scores_[place.item][place.choice];
      score.log_likelihood += static_cast<double>(likelihoods.const_data_ptr<float>()[i]);
      score.is_greedy = score.is_greedy && hits.const_data_ptr<bool>()[i];
    }
  }

  const model::Decoder& model_;
  const data::Task& task_;
  data::Batch batch_;
  Targets targets_;
  Scores scores_;
};

void require_finite(const Scores& scores) {
  for (size_t item = 0; item < scores.size(); ++item) {
    for (const ChoiceScore& score : scores[item]) {
      if (std::isfinite(score.log_likelihood)) continue;
      throw Error(ExitCode::kDiverged,
                  fmt::format("task_file: a log-likelihood of item {} is {}", item, score.log_likelihood),
                  "the model holds NaN or infinity, or overflows: try bf16=false");
    }
  }
}

/// What an item's likelihoods are divided by before they are compared.
enum class Length { kNone, kCharacters, kBytes };

double length_of(const std::string& choice, Length length) {
  if (length == Length::kNone) return 1;
  return static_cast<double>(length == Length::kBytes ? std::ssize(choice) : data::characters(choice));
}

bool is_right(const data::TaskItem& item, const std::vector<ChoiceScore>& scores, Length length) {
  size_t best = 0;
  const auto value = [&](size_t i) { return scores[i].log_likelihood / length_of(item.choices[i], length); };
  for (size_t i = 1; i < scores.size(); ++i) {
    if (value(i) > value(best)) best = i;
  }
  return static_cast<int64_t>(best) == item.gold;
}

struct Metric {
  const char* name;
  Length length;
};
constexpr std::array kMetrics = {Metric{"acc", Length::kNone}, Metric{"acc_norm", Length::kCharacters},
                                 Metric{"acc_bytes", Length::kBytes}};

}  // namespace

Scores score(const model::Decoder& model, const data::Task& task, const TaskBatch& batch) {
  const c10::NoGradGuard no_gradients;
  const std::vector<Document> documents = documents_of(task);
  const bool is_fixed = device::compiles_graphs(model.device());
  constexpr int64_t kStep = 128;
  int64_t row = 0;
  for (const Document& document : documents) row = std::max(row, std::ssize(*document.input));
  row = (row + kStep - 1) / kStep * kStep;
  const int64_t most = is_fixed ? batch.rows * row : batch.tokens;
  Scorer scorer(model, task);
  for (const Document& document : documents) {
    if (scorer.tokens() + std::ssize(*document.input) > most) scorer.flush();
    scorer.add(document);
    if (is_fixed) scorer.fill_row(row);
  }
  Scores scores = scorer.finish();
  require_finite(scores);
  return scores;
}

nlohmann::ordered_json task_results(const data::Task& task, const Scores& scores) {
  const auto count = static_cast<double>(task.items.size());
  nlohmann::ordered_json results = {{"items", task.items.size()}};
  for (const auto& [name, length] : kMetrics) {
    double right = 0;
    for (size_t i = 0; i < task.items.size(); ++i) right += is_right(task.items[i], scores[i], length) ? 1 : 0;
    const double mean = right / count;
    results[name] = mean;
    nlohmann::ordered_json& error = results[fmt::format("{}_stderr", name)];
    if (count > 1)
      error = std::sqrt((right * (1 - mean) * (1 - mean) + (count - right) * mean * mean) / (count - 1) / count);
  }
  return results;
}

std::vector<nlohmann::ordered_json> task_lines(const data::Task& task, const Scores& scores) {
  std::vector<nlohmann::ordered_json> lines;
  for (size_t i = 0; i < task.items.size(); ++i) {
    const data::TaskItem& item = task.items[i];
    nlohmann::ordered_json line = {{"item", i}, {"gold", item.gold}};
    for (size_t choice = 0; choice < scores[i].size(); ++choice) {
      line["log_likelihoods"].push_back(scores[i][choice].log_likelihood);
      line["is_greedy"].push_back(scores[i][choice].is_greedy);
      line["tokens"].push_back(item.encodings[choice].continuation.size());
    }
    for (const auto& [name, length] : kMetrics) line[name] = is_right(item, scores[i], length) ? 1 : 0;
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace fettle::train
