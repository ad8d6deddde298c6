// SPDX-License-Identifier: Apache-2.0
#include "train/training_inputs.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/watchdog.h"
#include "data/prompt.h"
#include "device/device.h"
#include "train/output_folder.h"

namespace fettle::train {
namespace {

/// The date for a chat template that writes today's, which decides tokens: a run that is taken up again on another day
/// keeps the one it began with. Empty if the template writes none.
std::string settled_date(const config::Config& config, const text::Tokenizer& tokenizer) {
  config::DataConfig data = config.data;
  if (data.template_date.empty()) data.template_date = noted_template_date(config.output);
  std::string date = data::PromptBuilder(data, tokenizer).template_date();
  if (!date.empty()) log::info("the chat template writes the date, here {}; template_date sets another", date);
  return date;
}

int64_t longest_row(const data::TokenDataset& dataset) {
  constexpr int64_t kStep = 128;
  return (dataset.preparation().longest + kStep - 1) / kStep * kStep;
}

data::OrderOptions fitted(data::OrderOptions order, const data::TokenDataset& dataset, at::Device device) {
  if (!device::compiles_graphs(device)) return order;
  order.fill_rows = true;
  if (!order.packing) order.max_seq_length = std::min(order.max_seq_length, longest_row(dataset));
  return order;
}

/// On a base that is in few bits only an adapter can be trained, and every rank has all of it.
void require_trainable(const config::Config& config, const ModelInputs& model) {
  if (!model.spec.quantization) return;
  const std::string base = "the model in " + model.base.path.string() + " is quantized";
  if (!config.lora.use_peft) {
    throw Error(ExitCode::kConfig, base + ": weights in few bits cannot be trained",
                "train an adapter (use_peft: true)");
  }
  if (config.distributed.zero_stage == 3) {
    throw Error(ExitCode::kConfig, base + ", and zero_stage is 3, which shares out the base's weights",
                "use zero_stage 2: a quantized base is small");
  }
}

}  // namespace

TrainingInputs prepare_training(const config::Config& given) {
  ModelInputs model = load_inputs(given.model);
  require_trainable(given, model);
  config::Config config = given;
  config.data.template_date = settled_date(config, model.tokenizer);
  const SectionMark mark(Section::kData);
  data::PreparedData data =
      data::prepare(config.data, model.tokenizer, config.training.do_train, config.model.cache_dir);
  require_vocabulary(model, data.train);
  if (data.validation) require_vocabulary(model, *data.validation);
  return {std::move(config), std::move(model), std::move(data)};
}

std::optional<RecordsToTry> records_to_try(const config::Config& config, const ModelInputs& inputs) {
  const config::DataConfig& options = config.data;
  const bool has_training = !options.train_file.empty() || !options.dataset_name.empty();
  if (!has_training && options.validation_file.empty()) return std::nullopt;
  const bool need_training = has_training && options.validation_file.empty();
  data::PreparedData data = data::prepare(options, inputs.tokenizer, need_training, config.model.cache_dir);
  const bool is_for_training = !data.validation;
  RecordsToTry found{is_for_training ? std::move(data.train) : *std::move(data.validation), is_for_training};
  require_vocabulary(inputs, found.records);
  return found;
}

data::OrderOptions training_order(const config::Config& config, const data::TokenDataset& dataset, at::Device device) {
  return fitted({config.data.max_seq_length, config.data.packing, config.data.shuffle, config.training.seed,
                 config.training.per_device_train_batch_size},
                dataset, device);
}

data::OrderOptions evaluation_order(const config::Config& config, const data::TokenDataset& dataset,
                                    at::Device device) {
  return fitted({config.data.max_seq_length, config.data.packing, /*shuffle=*/false, config.training.seed,
                 config.training.per_device_eval_batch_size},
                dataset, device);
}

data::Batch fitted_document(const data::TokenDataset& dataset, int64_t index, at::Device device) {
  data::Batch batch = data::single_document(dataset, index);
  if (!device::compiles_graphs(device)) return batch;
  batch.row_length = longest_row(dataset);
  batch.one_document_a_row = true;
  data::append_filling(batch, batch.row_length - std::ssize(batch.tokens));
  return batch;
}

}  // namespace fettle::train
