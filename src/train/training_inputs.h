// SPDX-License-Identifier: Apache-2.0
/// What a training run knows before its weights are touched; `fettle train` and `fettle check` begin with it.
#pragma once

#include <c10/core/Device.h>

#include <optional>

#include "config/config.h"
#include "data/batch.h"
#include "data/dataset.h"
#include "train/inputs.h"

namespace fettle::train {

struct TrainingInputs {
  config::Config config;  ///< template_date is settled
  ModelInputs model;
  data::PreparedData data;
};

/// Throws as load_inputs, data::prepare and require_vocabulary.
TrainingInputs prepare_training(const config::Config& given);

/// Records that a finished model is tried on.
struct RecordsToTry {
  data::TokenDataset records;
  bool are_for_training;  ///< there are no others
};

/// The validation records, else those to train on; none if no records are named. Throws as data::prepare and
/// require_vocabulary.
std::optional<RecordsToTry> records_to_try(const config::Config& config, const ModelInputs& inputs);

/// The order of the training records, and that of the validation records. For a device that compiles for one shape,
/// rows are filled; those of one document are no longer than the longest needs, in steps of 128 tokens.
data::OrderOptions training_order(const config::Config& config, const data::TokenDataset& dataset, at::Device device);
data::OrderOptions evaluation_order(const config::Config& config, const data::TokenDataset& dataset, at::Device device);

/// A document as `fettle eval` takes it by itself: filled likewise.
data::Batch fitted_document(const data::TokenDataset& dataset, int64_t index, at::Device device);

}  // namespace fettle::train
