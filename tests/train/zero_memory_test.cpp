// SPDX-License-Identifier: Apache-2.0
/// What a rank holds at every zero_stage.
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <sstream>

#include "device/device.h"
#include "hub/safetensors.h"
#include "train/loop.h"
#include "train/shards.h"
#include "train/tensor_file.h"
#include "train/tiny.h"
#include "train/zero_runs.h"

namespace fettle::train {
namespace {

constexpr int64_t kRanks = 4;

/// A random Llama of 10 million weights in 12 layers, 41 MB in float32.
model::DecoderSpec llama() {
  return model::DecoderSpec::from_config({{"model_type", "llama"},
                                          {"hidden_size", 256},
                                          {"intermediate_size", 768},
                                          {"num_hidden_layers", 12},
                                          {"num_attention_heads", 4},
                                          {"vocab_size", 512},
                                          {"max_position_embeddings", 256},
                                          {"tie_word_embeddings", true}});
}

void write_llama(const std::filesystem::path& file) {
  std::vector<model::NamedTensor> tensors;
  for (const model::TensorShape& tensor : model::expected_tensors(llama())) {
    tensors.push_back({tensor.name, at::randn(tensor.shape).mul(0.05)});
  }
  hub::write_safetensors(file, TensorViews(tensors).views(), {});
}

/// Bytes of memory, each storage once.
int64_t bytes_of(const std::vector<model::NamedTensor>& tensors) {
  std::map<const void*, int64_t> storages;
  for (const model::NamedTensor& each : tensors) {
    storages[each.tensor.storage().data()] = static_cast<int64_t>(each.tensor.storage().nbytes());
  }
  int64_t sum = 0;
  for (const auto& [data, bytes] : storages) sum += bytes;
  return sum;
}

int64_t gradient_bytes(const std::vector<model::NamedTensor>& parameters) {
  std::vector<model::NamedTensor> gradients;
  for (const model::NamedTensor& each : parameters) {
    if (each.tensor.grad().defined()) gradients.push_back({each.name, each.tensor.grad()});
  }
  return bytes_of(gradients);
}

/// One rank of two steps of full fine-tuning, the second of which is short. FETTLE_TEST_OPTIONS: file, stage. Says what
/// it holds after them, before the last update, and the most that the process had.
const dist::RankFunction holding(
    "hold", std::function<void(const dist::RankSetup&)>([](const dist::RankSetup& setup) {
      std::istringstream told(std::getenv("FETTLE_TEST_OPTIONS"));
      std::string file;
      int64_t stage = 0;
      told >> file >> stage;
      const auto group = dist::Group::join(setup.launch(), setup.options());
      const bool shares_weights = stage == 3;
      std::map<std::string, int64_t> owners;
      std::optional<model::LayerSharing> sharing;
      if (shares_weights) {
        owners = tensor_owners(llama(), group->size(), true);
        sharing = layer_sharing(group, llama(), owners);
      }
      model::Decoder model =
          model::Decoder::load(llama(), hub::TensorSource::open_safetensors(file), at::kFloat, {.sharing = sharing});
      model.make_trainable_full();
      model.set_gradient_checkpointing(true);
      const auto parameters = model.trainable();
      const Shards shards(group, stage, parameters, owners);
      AdamW optimizer(shards.owned(), {});
      std::vector<at::Tensor> leaves;
      for (const auto& each : parameters) leaves.push_back(each.tensor);
      dist::GradientBuckets gradients(group, leaves, 1 << 20,
                                      shards.share_gradients() ? shards.owners() : std::vector<int64_t>());
      StepLoader loader(tiny_dataset(11), {64, false, true, 3, 1}, 8, {group->rank(), group->size()});
      Cursor cursor;
      for (int step = 0; step < 2; ++step) {
        gradients.begin();
        forward_backward(model, loader.next(cursor), &gradients);
        gradients.finish();
        if (step == 1) break;
        optimizer.step(1e-3);
        shards.share_updated();
      }
      dist::say(fmt::format("{} {} {} {} {}", bytes_of(parameters), gradients.bytes(), gradient_bytes(parameters),
                            bytes_of(optimizer.state()), device::peak_memory_bytes()));
      group->leave();
    }));

struct Held {
  int64_t weights = 0;
  int64_t gradients = 0;
  int64_t optimizer = 0;
};

/// What each rank holds.
std::vector<Held> held_at(int64_t stage, const std::filesystem::path& file) {
  set_options({file.string() + " " + std::to_string(stage)});
  dist::Ranks ranks({.function = "hold", .world_size = kRanks});
  std::vector<Held> held;
  for (const dist::Outcome& outcome : ranks.end()) {
    EXPECT_EQ(outcome.code, 0) << outcome.report << outcome.err;
    std::istringstream said(outcome.report);
    Held each;
    int64_t in_buckets = 0;
    int64_t peak = 0;
    said >> each.weights >> in_buckets >> each.gradients >> each.optimizer >> peak;
    EXPECT_EQ(in_buckets, each.gradients) << "gradients outside of the buckets";
    fmt::print(
        "stage {} rank {}: weights {:.1f} MB, gradients {:.1f} MB, optimizer {:.1f} MB; process at most {:.0f} MB\n",
        stage, held.size(), 1e-6 * static_cast<double>(each.weights), 1e-6 * static_cast<double>(each.gradients),
        1e-6 * static_cast<double>(each.optimizer), 1e-6 * static_cast<double>(peak));
    held.push_back(each);
  }
  return held;
}

TEST(ZeroMemory, IsWhatEachStageSaves) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder.path() / "model.safetensors";
  write_llama(file);
  int64_t all = 0;      // bytes of the weights
  int64_t largest = 0;  // of a parameter
  int64_t outside = 0;  // of the weights that are in no layer
  for (const model::TensorShape& tensor : model::expected_tensors(llama())) {
    const auto bytes = 4 * c10::multiply_integers(tensor.shape);
    all += bytes;
    largest = std::max(largest, bytes);
    if (!tensor.name.starts_with("model.layers.")) outside += bytes;
  }
  const int64_t layer = (all - outside) / llama().layers;
  const auto steps = static_cast<int64_t>(4 * model::expected_tensors(llama()).size());
  for (int64_t stage = 0; stage <= 3; ++stage) {
    SCOPED_TRACE(stage);
    const int64_t unit = stage == 3 ? layer : largest;  // what goes to one rank as a whole
    const int64_t share = all / kRanks + unit;
    int64_t optimizer = 0;
    for (const Held& held : held_at(stage, file)) {
      EXPECT_LE(held.optimizer, 2 * (stage >= 1 ? share : all) + steps);
      EXPECT_LE(held.gradients, stage >= 2 ? share : all);
      EXPECT_LE(held.weights, stage == 3 ? share + outside + 1024 : all);
      optimizer += held.optimizer;
    }
    EXPECT_EQ(optimizer, (stage >= 1 ? 1 : kRanks) * (2 * all + steps));
  }
}

}  // namespace
}  // namespace fettle::train
