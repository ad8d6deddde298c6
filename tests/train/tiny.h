// SPDX-License-Identifier: Apache-2.0
/// A small model, small data and a folder to write to, shared by the tests of the train room.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/dataset.h"
#include "hub/model_folder.h"
#include "model/decoder.h"
#include "support/temporary_folder.h"

namespace fettle::train {

/// Documents of 4 to 23 random tokens; the first two of each are no targets.
inline data::TokenDataset tiny_dataset(int documents) {
  std::mt19937 random(11);
  std::vector<data::Example> examples(static_cast<size_t>(documents));
  for (data::Example& example : examples) {
    const size_t length = 4 + random() % 20;
    for (size_t i = 0; i < length; ++i) {
      example.input_ids.push_back(static_cast<int32_t>(3 + random() % 500));
      example.labels.push_back(i < 2 ? data::kIgnore : example.input_ids.back());
    }
  }
  return data::TokenDataset::from_examples(examples);
}

inline hub::ModelFolder stories_folder() {
  config::ModelConfig options;
  options.model_name_or_path = std::filesystem::path(FETTLE_SOURCE_DIR) / "examples/stories260K";
  return hub::resolve_model(options);
}

/// stories260K with LoRA on two of its layers' kinds; B is not zero, so that A has gradients too.
inline model::Decoder tiny_lora(at::ScalarType type, double dropout = 0) {
  at::set_num_threads(1);  // such small products only wait for a second thread
  const hub::ModelFolder folder = stories_folder();
  model::Decoder model =
      model::Decoder::load(model::DecoderSpec::from_config(folder.config), folder.open_weights(), type);
  config::LoraConfig lora;
  lora.lora_r = 4;
  lora.lora_dropout = dropout;
  lora.lora_target_modules = {"q_proj", "down_proj"};
  model.add_lora(lora, 5);
  for (const model::NamedTensor& parameter : model.trainable()) {
    if (parameter.name.find("lora_B") != std::string::npos) parameter.tensor.data().fill_(0.01);
  }
  model.refresh_compute_weights();
  return model;
}

/// The exit code of what `action` throws; kOk if it throws nothing.
template <typename Action>
ExitCode code_of(Action&& action) {
  try {
    action();
    return ExitCode::kOk;
  } catch (const Error& error) {
    return error.code();
  }
}

}  // namespace fettle::train
