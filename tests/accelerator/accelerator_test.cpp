// SPDX-License-Identifier: Apache-2.0
/// A whole run on a device against the same run on the CPU: on a GPU, and on a stand-in that computes with the CPU's
/// operations, where a tensor that is read in the wrong place, or not brought along, shows.
#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "device.h"
#include "device/device.h"
#include "dist/launch.h"
#include "model/generate.h"
#include "ops/dispatch.h"
#include "support/temporary_folder.h"
#include "train/fine_tune.h"
#include "train/inputs.h"
#include "train/loop.h"

namespace fettle::train {
namespace {

using nlohmann::json;

std::vector<json> lines_of(const std::filesystem::path& file) {
  std::ifstream text(file);
  std::vector<json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(json::parse(line));
  return lines;
}

/// None where a device draws other random numbers than the CPU.
double dropout() {
  return ops::testing::draws_as_the_cpu() ? 0.1 : 0.0;
}

class Accelerator : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = ops::testing::why_no_device(); !reason.empty()) GTEST_SKIP() << reason;
  }

  Accelerator() {
    std::mt19937 random(5);
    std::ofstream file(folder_.path() / "train.jsonl");
    for (int i = 0; i < 24; ++i) {
      json record = {{"input_ids", json::array()}, {"labels", json::array()}};
      for (size_t k = 4 + random() % 30; k > 0; --k) {
        record["input_ids"].push_back(3 + random() % 500);
        record["labels"].push_back(k % 3 == 0 ? json(-100) : record["input_ids"].back());
      }
      file << record.dump() << '\n';
    }
  }

  [[nodiscard]] config::Config config(const std::string& name, const std::string& device) const {
    config::Config config;
    config.model.model_name_or_path = std::filesystem::path(FETTLE_SOURCE_DIR) / "examples/stories260K";
    config.data.train_file = {folder_.path() / "train.jsonl"};
    config.data.validation_file = {folder_.path() / "train.jsonl"};
    config.data.dataset_format = "tokenized";
    config.data.dataset_cache_directory = folder_.path() / "cache";
    config.data.max_seq_length = 64;
    config.training.per_device_train_batch_size = 2;
    config.training.gradient_accumulation_steps = 2;
    config.training.learning_rate = 1e-2;
    config.training.max_steps = 6;
    config.training.logging_steps = 1;
    config.training.bf16 = false;
    config.output.output_dir = folder_.path() / name;
    config.device.device = device;
    config.device.num_threads = 1;
    config.device.fused_ops = false;
    return config;
  }

  /// metrics.jsonl of a run.
  static std::vector<json> run(const config::Config& config) {
    fine_tune(config, dist::Launch());
    return lines_of(std::filesystem::path(config.output.output_dir) / "metrics.jsonl");
  }

  void expect_same_run(const std::function<void(config::Config&)>& change, double tolerance = 1e-5) const {
    config::Config on_cpu = config("cpu", "cpu");
    config::Config on_device = config("device", "cuda");
    change(on_cpu);
    change(on_device);
    const std::vector<json> expected = run(on_cpu);
    const std::vector<json> actual = run(on_device);
    ASSERT_GE(expected.size(), 2u);
    EXPECT_LE(difference(actual, expected), tolerance);
  }

  /// The largest relative difference of the losses of two runs.
  static double difference(const std::vector<json>& one, const std::vector<json>& other) {
    EXPECT_EQ(one.size(), other.size());
    double largest = 0;
    for (size_t i = 0; i < std::min(one.size(), other.size()); ++i) {
      for (const char* key : {"loss", "grad_norm", "eval_loss"}) {
        EXPECT_EQ(one[i].contains(key), other[i].contains(key));
        if (!one[i].contains(key)) continue;
        const double a = one[i][key];
        const double b = other[i][key];
        largest = std::max(largest, std::abs(a - b) / std::abs(b));
      }
    }
    return largest;
  }

  TemporaryFolder folder_;
};

TEST_F(Accelerator, TrainsAnAdapterAsTheCpuDoes) {
  expect_same_run([](config::Config& config) { config.lora.lora_dropout = dropout(); });
}

TEST_F(Accelerator, TrainsAllWeightsAsTheCpuDoes) {
  expect_same_run([](config::Config& config) { config.lora.use_peft = false; });
}

TEST_F(Accelerator, TrainsInBfloat16WithRecomputationAsTheCpuDoes) {
  expect_same_run(
      [](config::Config& config) {
        config.training.bf16 = true;
        config.training.gradient_checkpointing = true;
        config.lora.lora_dropout = dropout();
        config.training.learning_rate = 1e-3;
      },
      /*tolerance=*/4e-3);  // a product's terms are added in another order, and one rounding of bfloat16 is 2^-9
}

TEST_F(Accelerator, TrainsOnAQuantizedBaseAsTheCpuDoes) {
  expect_same_run([](config::Config& config) {
    config.model.load_in_4bit = true;
    config.training.learning_rate = 1e-3;
  });
}

/// With the kernels of Fettle, those of CUDA emulated.
TEST_F(Accelerator, TrainsWithCudasKernelsAsTheCpuDoesWithItsOwn) {
  EXPECT_EQ(ops::testing::start_cuda(), "");
  for (const bool bf16 : {false, true}) {
    expect_same_run(
        [bf16](config::Config& config) {
          config.output.output_dir += bf16 ? "-bf16" : "-float32";
          config.device.fused_ops = true;
          config.training.bf16 = bf16;
          config.training.max_steps = 2;  // emulation is slow
          config.training.gradient_accumulation_steps = 1;
          config.training.do_eval = false;
          config.output.verify_saved_model = false;
          config.training.learning_rate = 1e-3;
          config.model.load_in_8bit = true;
        },
        bf16 ? 4e-3 : 1e-5);
  }
  ops::testing::stop_cuda();
}

TEST_F(Accelerator, ResumesOnTheOtherDevice) {
  for (const auto& [first, second] : {std::pair("cuda", "cpu"), std::pair("cpu", "cuda")}) {
    config::Config whole = config(std::string("whole on ") + first, first);
    whole.training.save_steps = 3;
    const std::vector<json> all = run(whole);
    config::Config rest = config(std::string("rest on ") + second, second);
    rest.training.save_steps = 3;
    rest.output.resume_from_checkpoint = std::filesystem::path(whole.output.output_dir) / "checkpoint-3";
    const std::vector<json> last = run(rest);
    const auto of_step = [](int64_t step) { return [step](const json& line) { return line["step"] == step; }; };
    const auto begin = std::ranges::find_if(all, of_step(4));
    const auto rest_begin = std::ranges::find_if(last, of_step(4));
    EXPECT_LE(difference({rest_begin, last.end()}, {begin, all.end()}), 1e-5);
  }
}

TEST_F(Accelerator, WaitsForNothingButTheLosses) {
  start_device(config("x", "cuda").device);
  const ModelInputs inputs = load_inputs(config("x", "cuda").model);
  model::Decoder model = load_model(inputs, {}, {at::kFloat, at::Device(at::kCUDA, 0)});
  model.add_lora({}, 1);
  Step step;
  step.rounds = 3;
  step.target_tokens = 9;
  for (int i = 0; i < 3; ++i) {
    step.batches.push_back({{5, 6, 7, 8}, {6, 7, 8, -100}, {0, 1, 2, 3}, {0, 4}, {i}, 3});
    step.seeds.push_back(1);
  }
  forward_backward(model, step);  // whatever happens only once
  if (!ops::testing::waits_for_device()) GTEST_SKIP() << "nothing counts waits on a GPU";
  const int64_t before = *ops::testing::waits_for_device();
  const std::vector<at::Tensor> losses = forward_backward(model, step);
  const at::Tensor norm = gradient_norm(model.trainable());
  EXPECT_EQ(*ops::testing::waits_for_device() - before, 0);
  EXPECT_GT(sum(losses), 0);
  EXPECT_EQ(*ops::testing::waits_for_device() - before, 3);
}

TEST_F(Accelerator, GeneratesWhatTheCpuGenerates) {
  start_device(config("x", "cuda").device);
  const ModelInputs inputs = load_inputs(config("x", "cuda").model);
  config::GenerationConfig generation;
  generation.max_new_tokens = 12;
  const auto answer = [&](at::Device device) {
    return model::generate(load_model(inputs, {}, {at::kFloat, device}), {1, 400, 300}, generation, 1, {});
  };
  EXPECT_EQ(answer(at::Device(at::kCUDA, 0)), answer(at::kCPU));
}

TEST_F(Accelerator, ItsMemoryIsClosedToTheHost) {
  start_device(config("x", "cuda").device);
  const at::Tensor there = at::ones({4}, at::Device(at::kCUDA, 0));
  EXPECT_DEATH(static_cast<void>(*static_cast<const volatile float*>(there.const_data_ptr())), "");
  EXPECT_EQ(there.sum().item<float>(), 4.0f);
}

}  // namespace
}  // namespace fettle::train
