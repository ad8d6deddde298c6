// SPDX-License-Identifier: Apache-2.0
/// `fettle train` from options to saved result: prepare, evaluate, train, save, verify, evaluate.
#pragma once

#include "config/config.h"

namespace fettle::train {

/// Runs everything that the options ask for. Throws Error with the exit code that fits.
void fine_tune(const config::Config& config);

/// The option's value or, unset, 2e-4 with LoRA and 2e-5 for full fine-tuning.
double peak_learning_rate(const config::TrainingConfig& training, const config::LoraConfig& lora);

}  // namespace fettle::train
