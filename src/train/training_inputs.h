// SPDX-License-Identifier: Apache-2.0
/// What a training run knows before its weights are touched; `fettle train` and `fettle check` begin with it.
#pragma once

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

/// The order of the training records, and that of the validation records.
data::OrderOptions training_order(const config::Config& config);
data::OrderOptions evaluation_order(const config::Config& config);

}  // namespace fettle::train
