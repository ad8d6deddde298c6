// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "train/evaluate.h"
#include "train/inputs.h"
#include "train/training_inputs.h"

namespace fettle::cli {

int evaluate(const Arguments& arguments) {
  const auto config = read_options(arguments, config::Command::kEval);
  if (!config) return 0;
  const device::Device device = train::start_device(config->device);
  log::info("{}", device.description());
  const train::ModelInputs inputs = train::load_inputs(config->model);
  const data::PreparedData data =
      data::prepare(config->data, inputs.tokenizer, /*need_train=*/false, config->model.cache_dir);
  if (!data.validation) {
    throw Error(ExitCode::kUsage, "fettle eval needs evaluation records", "give validation_file");
  }
  train::require_vocabulary(inputs, *data.validation);
  const model::Decoder model =
      train::load_model(inputs, config->model, {train::compute_type(config->training), device.torch_device});
  const data::OrderOptions order = train::evaluation_order(*config, *data.validation, device.torch_device);
  const train::Evaluation evaluation = config->eval.per_record.empty()
                                           ? train::evaluate(model, *data.validation, order)
                                           : train::evaluate_records(model, *data.validation, config->eval.per_record);
  if (!config->eval.logits_file.empty()) train::write_logits(model, *data.validation, config->eval.logits_file);
  fmt::print("{}\n", train::evaluation_results(evaluation).dump());
  return 0;
}

}  // namespace fettle::cli
