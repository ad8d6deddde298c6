// SPDX-License-Identifier: Apache-2.0
/// How likely a model finds the choices of a multiple-choice task, and how often the right one comes out first.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/task.h"
#include "model/decoder.h"

namespace fettle::train {

struct ChoiceScore {
  double log_likelihood = 0;  ///< sum over the continuation's tokens, natural logarithm
  bool is_greedy = false;     ///< each of the tokens is the likeliest one
};

/// Documents of a batch: as many as `tokens` hold, at least one; on a device that compiles a graph for each shape
/// `rows` of one length.
struct TaskBatch {
  int64_t tokens = 8192;
  int64_t rows = 8;
};

/// [items][choices]. Choices that the model reads the same tokens for (of one token each) are computed once. Throws
/// Error{kDiverged} where a likelihood is no number.
std::vector<std::vector<ChoiceScore>> score(const model::Decoder& model, const data::Task& task,
                                            const TaskBatch& batch);

/// {"items", "acc", "acc_stderr", "acc_norm", …, "acc_bytes", …}, as lm-evaluation-harness defines them: how often the
/// gold choice has the highest log-likelihood; the highest per character; per byte. Of equal ones the first counts. The
/// standard error is null for a single item.
nlohmann::ordered_json task_results(const data::Task& task, const std::vector<std::vector<ChoiceScore>>& scores);

/// One object an item: {"item", "gold", "log_likelihoods", "is_greedy", "tokens", "acc", "acc_norm", "acc_bytes"}.
std::vector<nlohmann::ordered_json> task_lines(const data::Task& task,
                                               const std::vector<std::vector<ChoiceScore>>& scores);

}  // namespace fettle::train
