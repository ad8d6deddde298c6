// SPDX-License-Identifier: Apache-2.0
/// `fettle train` from options to saved result: prepare, evaluate, train, save, verify, evaluate.
#pragma once

#include "config/config.h"
#include "dist/launch.h"

namespace fettle::train {

/// Runs everything that the options ask for, as one of the processes of a run. Throws Error with the exit code that
/// fits; the process should then end without destructors (dist/group.h).
void fine_tune(const config::Config& config, const dist::Launch& launch);

/// The option's value or, unset, 2e-4 with LoRA and 2e-5 for full fine-tuning.
double peak_learning_rate(const config::TrainingConfig& training, const config::LoraConfig& lora);

}  // namespace fettle::train
