// SPDX-License-Identifier: Apache-2.0
/// A decoder over weights in few bits computes what one over the expanded weights computes.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/equal.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "model/decoder.h"
#include "support/temporary_folder.h"
#include "tiny_model.h"

namespace fettle::model {
namespace {

using namespace testing;  // this room's: tiny models
using ops::WeightFormat;

class Quantized : public ::testing::TestWithParam<WeightFormat> {
 protected:
  Quantized() { at::manual_seed(3); }

  /// The model's tensors with every matrix of a layer as its codes say.
  [[nodiscard]] Tensors expanded() const {
    Tensors tensors = random_tensors(spec_);
    for (auto& [name, tensor] : tensors) {
      if (name.ends_with("_proj.weight")) tensor = ops::dequantize(ops::quantize(tensor, GetParam()), at::kFloat);
    }
    return tensors;
  }

  TemporaryFolder folder_;
  DecoderSpec spec_ = DecoderSpec::from_config(tiny_config());
};
INSTANTIATE_TEST_SUITE_P(Formats, Quantized,
                         ::testing::Values(WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kNf4,
                                           WeightFormat::kFp4));

struct Outcome {
  at::Tensor loss;
  std::vector<at::Tensor> gradients;
};
Outcome train(Decoder& model, bool checkpoints) {
  model.add_lora({}, /*seed=*/5);
  model.set_gradient_checkpointing(checkpoints);
  at::manual_seed(11);
  Outcome outcome{model.loss_sum(random_batch({5, 1, 17}, 61)), {}};
  outcome.loss.backward();
  for (const NamedTensor& master : model.trainable()) outcome.gradients.push_back(master.tensor.grad());
  return outcome;
}

TEST_P(Quantized, TrainsAsTheExpandedModel) {
  at::manual_seed(3);
  const Tensors full = random_tensors(spec_);
  at::manual_seed(3);
  const hub::TensorSource same = write_tensors(folder_.path() / "expanded.safetensors", expanded());
  const hub::TensorSource source = write_tensors(folder_.path() / "full.safetensors", full);
  for (const bool checkpoints : {false, true}) {
    Decoder quantized = Decoder::load(spec_, source, at::kFloat, {.quantization = GetParam()});
    Decoder plain = Decoder::load(spec_, same, at::kFloat);
    const Outcome actual = train(quantized, checkpoints);
    const Outcome expected = train(plain, checkpoints);
    EXPECT_TRUE(at::equal(actual.loss, expected.loss));
    ASSERT_EQ(actual.gradients.size(), expected.gradients.size());
    for (size_t i = 0; i < actual.gradients.size(); ++i) {
      EXPECT_TRUE(at::equal(actual.gradients[i], expected.gradients[i])) << i;
    }
  }
}

TEST_P(Quantized, TrainsAWholeMatrixFromItsFullWeights) {
  const Tensors full = random_tensors(spec_);
  const hub::TensorSource source = write_tensors(folder_.path() / "full.safetensors", full);
  Decoder model = Decoder::load(spec_, source, at::kFloat, {.quantization = GetParam()});
  config::LoraConfig lora;
  lora.lora_modules_to_save = {"layers.1.mlp.down_proj"};
  model.add_lora(lora, /*seed=*/5);
  bool is_found = false;
  for (const NamedTensor& master : model.trainable()) {
    if (!master.name.ends_with("layers.1.mlp.down_proj.weight")) continue;
    is_found = true;
    EXPECT_TRUE(at::equal(master.tensor.detach(), full.at("model.layers.1.mlp.down_proj.weight")));
  }
  EXPECT_TRUE(is_found);
}

TEST_P(Quantized, HasNoWeightsToSave) {
  const hub::TensorSource source = write_tensors(folder_.path() / "full.safetensors", random_tensors(spec_));
  const Decoder model = Decoder::load(spec_, source, at::kFloat, {.quantization = GetParam()});
  EXPECT_THROW(static_cast<void>(model.weights()), c10::Error);
}

}  // namespace
}  // namespace fettle::model
