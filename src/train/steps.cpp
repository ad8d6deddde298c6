// SPDX-License-Identifier: Apache-2.0
#include "train/steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "data/permutation.h"

namespace fettle::train {

namespace {

/// Of the numbers drawn for a micro-batch: 64 well-mixed bits.
uint64_t batch_seed(int64_t seed, const Cursor& place) {
  const auto bits = [](int64_t value) { return static_cast<uint64_t>(value); };
  return data::mix(data::mix(data::mix(bits(seed)) ^ bits(place.epoch)) ^ bits(place.batch));
}

}  // namespace

StepLoader::StepLoader(data::TokenDataset dataset, const data::OrderOptions& options, int64_t batches_per_step,
                       Share share)
    : dataset_(std::move(dataset)), options_(options), batches_per_step_(batches_per_step), share_(share) {}

const data::BatchOrder& StepLoader::order(int64_t epoch) {
  if (epoch_ != epoch) {
    order_.emplace(dataset_, options_, epoch);
    epoch_ = epoch;
  }
  return *order_;
}

Step StepLoader::next(Cursor& cursor) {
  const data::BatchOrder& batches = order(cursor.epoch);
  const Cursor begin = cursor;
  Step step;
  const int64_t end = std::min(cursor.batch + batches_per_step_, batches.batches());
  for (; cursor.batch < end; ++cursor.batch) {
    for (const int64_t document : batches.documents(cursor.batch)) {
      step.document_lengths.push_back(dataset_.length(document));
      step.tokens += dataset_.length(document);
      step.target_tokens += dataset_.targets(document);
    }
    if ((cursor.batch - begin.batch) % share_.ranks != share_.rank) continue;
    step.batches.push_back(batches.batch(cursor.batch));
    step.seeds.push_back(batch_seed(options_.seed, cursor));
  }
  if (step.target_tokens == 0) {
    throw Error(
        ExitCode::kData,
        fmt::format("no token of micro-batches {} to {} of epoch {} is a target", begin.batch, end - 1, begin.epoch),
        "look at the masks with `fettle preprocess`; a larger batch mixes such records with others");
  }
  step.rounds = (end - begin.batch + share_.ranks - 1) / share_.ranks;
  step.ends_epoch = end == batches.batches();
  if (step.ends_epoch) cursor = {cursor.epoch + 1, 0};
  return step;
}

int64_t StepLoader::steps_per_epoch() {
  return std::max<int64_t>(1,
                           (order(std::max<int64_t>(0, epoch_)).batches() + batches_per_step_ - 1) / batches_per_step_);
}

double StepLoader::epochs(const Cursor& cursor) {
  if (cursor.batch == 0) return static_cast<double>(cursor.epoch);
  return static_cast<double>(cursor.epoch) +
         static_cast<double>(cursor.batch) / static_cast<double>(order(cursor.epoch).batches());
}

int64_t total_steps(const config::TrainingConfig& options, int64_t steps_per_epoch) {
  const bool by_epochs = options.max_steps <= 0;
  const double steps = by_epochs ? std::ceil(options.num_train_epochs * static_cast<double>(steps_per_epoch))
                                 : static_cast<double>(options.max_steps);
  if (!(steps >= 1 && steps <= static_cast<double>(kMostSteps))) {
    throw Error(ExitCode::kUsage,
                fmt::format("{} makes {:.4g} optimizer steps; from 1 to {:.0e} are possible",
                            by_epochs ? fmt::format("num_train_epochs {}", options.num_train_epochs) : "max_steps",
                            steps, static_cast<double>(kMostSteps)),
                "give fewer");
  }
  return static_cast<int64_t>(steps);
}

int64_t interval_steps(double value, int64_t total_steps) {
  const double steps = value < 1 ? std::ceil(value * static_cast<double>(total_steps)) : value;
  return static_cast<int64_t>(std::clamp(steps, 1.0, static_cast<double>(kMostSteps)));
}

}  // namespace fettle::train
