// SPDX-License-Identifier: Apache-2.0
/// Every front door on CUDA tensors, forward and backward, against its twin in float64 on the CPU.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/function.h>

#include <cmath>

#include "device.h"
#include "ops/attention.h"
#include "ops/dispatch.h"
#include "ops/gated.h"
#include "ops/linear_cross_entropy.h"
#include "ops/lora_linear.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "reference.h"

namespace fettle::ops {
namespace {

using testing::expect_close;
using testing::random;
using Tensors = std::vector<at::Tensor>;

at::Tensor on_device(const at::Tensor& x) {
  return x.to(at::kCUDA);
}

class CudaFrontDoors : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = testing::start_cuda(); !reason.empty()) GTEST_SKIP() << reason;
    at::manual_seed(11);
  }
};

/// `op` on the device in float32 and bfloat16 against `twin` in float64 on the CPU: result and gradients, the same bits
/// twice.
void expect_matches_twin(const testing::Operator& op, const testing::Operator& twin, const Tensors& inputs) {
  const at::Tensor seed = random(twin(inputs).sizes());
  const Tensors expected = testing::run(twin, inputs, at::kDouble, seed);
  Tensors moved;
  for (const at::Tensor& input : inputs) moved.push_back(on_device(input));
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const Tensors actual = testing::run(op, moved, type, on_device(seed));
    const Tensors again = testing::run(op, moved, type, on_device(seed));
    for (size_t i = 0; i < expected.size(); ++i) {
      const std::string what = std::string(c10::toString(type)) + " result " + std::to_string(i);
      EXPECT_TRUE(actual[i].is_cuda()) << what;
      expect_close(actual[i].cpu(), expected[i], testing::tolerance(type), what);
      EXPECT_TRUE(at::equal(actual[i].cpu(), again[i].cpu())) << what << " a second time";
    }
  }
}

TEST_F(CudaFrontDoors, RmsNorm) {
  for (const int64_t columns : {7, 128, 2048}) {
    SCOPED_TRACE(columns);
    expect_matches_twin([](const auto& in) { return rms_norm(in[0], in[1], 1e-5); },
                        [](const auto& in) { return composite::rms_norm(in[0], in[1], 1e-5); },
                        {random({13, 5, columns}), random({columns})});
  }
}

TEST_F(CudaFrontDoors, RmsNormOfAFrozenWeight) {
  const at::Tensor x = random({9, 64});
  const at::Tensor weight = random({64});
  const at::Tensor leaf = on_device(x.to(at::kFloat)).requires_grad_(true);
  const at::Tensor frozen = on_device(weight.to(at::kFloat));
  rms_norm(leaf, frozen, 1e-5).sum().backward();
  const at::Tensor reference = x.clone().requires_grad_(true);
  composite::rms_norm(reference, weight, 1e-5).sum().backward();
  expect_close(leaf.grad().cpu(), reference.grad(), testing::tolerance(at::kFloat), "gradient");
  EXPECT_FALSE(frozen.grad().defined());
}

TEST_F(CudaFrontDoors, Rotary) {
  for (const int64_t half : {3, 16, 64}) {
    SCOPED_TRACE(half);
    const at::Tensor cos = random({17, half});
    const at::Tensor sin = random({17, half});
    const auto with = [&](auto* op) {
      return [&, op](const auto& in) { return op(in[0], cos.to(in[0].options()), sin.to(in[0].options())); };
    };
    expect_matches_twin(with(&apply_rotary), with(&composite::apply_rotary), {random({17, 3, 2 * half + 8})});
  }
}

TEST_F(CudaFrontDoors, Swiglu) {
  expect_matches_twin([](const auto& in) { return swiglu(in[0], in[1]); },
                      [](const auto& in) { return composite::swiglu(in[0], in[1]); },
                      {random({33, 257}) * 4, random({33, 257})});
}

TEST_F(CudaFrontDoors, LinearCrossEntropy) {
  const at::Tensor labels = at::tensor({3, -100, 0, 36, -100, -100, 5, 5, 12, 1}, at::kLong);
  for (const int64_t chunk : {0, 1, 3, 100}) {
    SCOPED_TRACE(chunk);
    expect_matches_twin(
        [&](const auto& in) { return linear_cross_entropy(in[0], in[1], labels.to(in[0].device()), chunk); },
        [&](const auto& in) { return composite::linear_cross_entropy(in[0], in[1], labels).to(in[0].scalar_type()); },
        {random({10, 16}), random({37, 16}) * 0.25});
  }
}

TEST_F(CudaFrontDoors, LinearCrossEntropyWithoutTargetsIsZeroAndWithAWrongLabelNan) {
  const at::Tensor hidden = on_device(random({2, 8}).to(at::kFloat)).requires_grad_(true);
  const at::Tensor weight = on_device(random({11, 8}).to(at::kFloat));
  const at::Tensor loss = linear_cross_entropy(hidden, weight, on_device(at::full({2}, -100, at::kLong)));
  EXPECT_EQ(loss.item<float>(), 0.0f);
  loss.backward();
  EXPECT_EQ(hidden.grad().abs().max().item<float>(), 0.0f);
  const at::Tensor wrong = linear_cross_entropy(hidden, weight, on_device(at::tensor({3, 11}, at::kLong)));
  EXPECT_TRUE(std::isnan(wrong.item<float>()));
}

TEST_F(CudaFrontDoors, LoraLinear) {
  const at::Tensor weight = random({24, 16});
  const at::Tensor bias = random({24});
  const auto with = [&](auto* op) {
    return [&, op](const auto& in) {
      const LoraProjection projection{weight.to(in[0].options()), bias.to(in[0].options()), in[1], in[2]};
      return op(in[0], {projection}, {.scaling = 0.5, .dropout = 0})[0];
    };
  };
  expect_matches_twin(with(&lora_linear), with(&composite::lora_linear),
                      {random({50, 16}), random({4, 16}), random({24, 4})});
}

TEST_F(CudaFrontDoors, Attention) {
  struct Case {
    int64_t heads;
    int64_t key_heads;
    int64_t size;
    int64_t window;
    std::vector<int32_t> boundaries;
  };
  const std::vector<Case> cases{
      {2, 2, 16, 0, {0, 40}},               // one document
      {6, 2, 64, 0, {0, 1, 40, 40, 131}},   // grouped queries; documents of 1 and 0 tokens
      {4, 1, 16, 7, {0, 5, 60}},            // one shorter and one longer than the window
      {4, 2, 32, 1, {0, 9}},                // sees itself alone
      {4, 2, 16, 0, {0, 1, 2, 2, 3}},       // tokens by themselves
      {2, 1, 12, 0, {0, 30}},               // heads that flash attention does not take
      {2, 1, 128, 100, {0, 300, 301, 400}}  // several blocks
  };
  for (const Case& c : cases) {
    SCOPED_TRACE("heads of " + std::to_string(c.size) + " window " + std::to_string(c.window));
    const AttentionSpec spec{.scale = 0.25, .window = c.window};
    const int64_t tokens = c.boundaries.back();
    expect_matches_twin([&](const auto& in) { return attention(in[0], in[1], in[2], spec, c.boundaries); },
                        [&](const auto& in) { return composite::attention(in[0], in[1], in[2], spec, c.boundaries); },
                        {random({tokens, c.heads, c.size}), random({tokens, c.key_heads, c.size}),
                         random({tokens, c.key_heads, c.size})});
  }
}

TEST_F(CudaFrontDoors, AttentionLeavesTorchsSettingsAsTheyWere) {
  const auto input = [](at::IntArrayRef shape) {
    return on_device(random(shape).to(at::kBFloat16)).requires_grad_(true);
  };
  const AttentionSpec spec{.scale = 0.25, .window = 0};
  attention(input({6, 2, 16}), input({6, 1, 16}), input({6, 1, 16}), spec, {0, 6}).sum().backward();
  EXPECT_FALSE(at::globalContext().deterministicAlgorithms());
  EXPECT_TRUE(at::globalContext().deterministicFillUninitializedMemory());
}

std::map<std::string, at::Tensor> all_front_doors() {
  const auto input = [](at::IntArrayRef shape) {
    return on_device(random(shape).to(at::kBFloat16)).requires_grad_(true);
  };
  const at::Tensor cos = on_device(random({6, 4}).to(at::kBFloat16));
  const at::Tensor labels = on_device(at::randint(0, 11, {6}, at::kLong));
  const AttentionSpec spec{.scale = 0.3, .window = 0};
  return {{"attention", attention(input({6, 4, 8}), input({6, 2, 8}), input({6, 2, 8}), spec, {0, 2, 6})},
          {"swiglu", swiglu(input({6, 8}), input({6, 8}))},
          {"rms_norm", rms_norm(input({6, 8}), input({8}), 1e-5)},
          {"apply_rotary", apply_rotary(input({6, 4, 8}), cos, cos)},
          {"linear_cross_entropy", linear_cross_entropy(input({6, 8}), input({11, 8}), labels)}};
}

TEST_F(CudaFrontDoors, TakeTheKernelsUnlessFusedOperationsAreOff) {
  for (const auto& [name, result] : all_front_doors()) {
    EXPECT_THAT(result.grad_fn()->name(), ::testing::HasSubstr("fettle::ops")) << name;
  }
  const testing::WithoutFusedOps plain;
  for (const auto& [name, result] : all_front_doors()) {
    EXPECT_THAT(result.grad_fn()->name(), ::testing::Not(::testing::HasSubstr("fettle::ops"))) << name;
  }
}

TEST_F(CudaFrontDoors, DoNotWaitForTheDevice) {
  if (!testing::waits_for_device()) GTEST_SKIP() << "nothing counts waits on a GPU";
  const auto input = [](at::IntArrayRef shape) {
    return on_device(random(shape).to(at::kBFloat16)).requires_grad_(true);
  };
  const at::Tensor hidden = input({6, 4, 8});
  const at::Tensor weight = input({32});
  const at::Tensor head = input({11, 32});
  const at::Tensor labels = on_device(at::tensor({3, -100, 0, 5, -100, 1}, at::kLong));
  const auto before = testing::waits_for_device();
  const at::Tensor mixed = attention(hidden, hidden, hidden, {.scale = 0.3, .window = 0}, {0, 2, 6}).view({6, 32});
  const at::Tensor last = swiglu(rms_norm(mixed, weight, 1e-5), mixed);
  linear_cross_entropy(last, head, labels).backward();
  EXPECT_EQ(testing::waits_for_device(), before);
  static_cast<void>(head.grad()[0][0].item<float>());
  EXPECT_NE(testing::waits_for_device(), before) << "a wait is counted";
}

TEST_F(CudaFrontDoors, KernelsOfAnotherVersionAreRefused) {
  const cuda::KernelTable* table = detail::cuda_kernels;
  cuda::KernelTable other = *table;
  ++other.version;
  EXPECT_THROW(set_cuda_kernels(&other), c10::Error);
  EXPECT_EQ(detail::cuda_kernels, table);
  const cuda::Dequantize no_bits{};
  EXPECT_THROW(launch(&cuda::KernelTable::dequantize, on_device(random({1})), no_bits), c10::Error);
}

TEST_F(CudaFrontDoors, Dequantize) {
  constexpr int64_t kCount = 999;
  const at::Tensor codes = at::randint(0, 256, {kCount}, at::kByte);
  const at::Tensor scales = random({(kCount + 63) / 64}).to(at::kFloat);
  const at::Tensor on_gpu = on_device(at::empty({kCount}, at::kBFloat16));
  const at::Tensor moved_codes = on_device(codes);
  const at::Tensor moved_scales = on_device(scales);
  launch(&cuda::KernelTable::dequantize, on_gpu,
         {.type = kernel_type(on_gpu),
          .bits = 8,
          .count = kCount,
          .group = 64,
          .codes = moved_codes.const_data_ptr(),
          .scales = moved_scales.const_data_ptr<float>(),
          .codebook = {},
          .values = on_gpu.mutable_data_ptr()});
  const at::Tensor expected = codes.view(at::kChar).to(at::kFloat) * scales.repeat_interleave(64).narrow(0, 0, kCount);
  EXPECT_TRUE(at::equal(on_gpu.cpu(), expected.to(at::kBFloat16)));
}

}  // namespace
}  // namespace fettle::ops
