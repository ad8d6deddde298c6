// SPDX-License-Identifier: Apache-2.0
/// Every CUDA kernel, compiled as plain C++ and run on the processor (emulation/cuda_runtime.h), against its twin in
/// float64 and against the CPU kernel. Each case runs with several numbers of blocks and orders of threads, on arrays
/// that are 16-byte aligned and on arrays that are not; the bits may not depend on the schedule.
#include "ops/cuda/kernels.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <limits>

#include "cuda_runtime.h"
#include "ops/cpu/kernels.h"
#include "ops/dispatch.h"
#include "ops/gated.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "reference.h"

namespace fettle::ops::cuda {
namespace {

class CudaKernels : public ::testing::Test {
 protected:
  CudaKernels() { at::manual_seed(5); }
};

using testing::expect_close;
using testing::random;
using Tensors = std::vector<at::Tensor>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::array kTypes{at::kFloat, at::kBFloat16};

Type type_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? Type::kFloat : Type::kBFloat16;
}

// From the CPU kernel both differ by the order of sums and the last bit of an exponential: in bfloat16, by a rounding.
double step(at::ScalarType type) {
  return type == at::kFloat ? 2e-6 : 1.0 / 128;
}

// Sizes of at::empty, beginning `offset` elements behind a 16-byte boundary, filled with what no kernel may leave
// there.
at::Tensor unwritten(at::IntArrayRef sizes, at::ScalarType type, int64_t offset) {
  return at::full({c10::multiply_integers(sizes) + offset}, kNan, type).slice(0, offset).view(sizes);
}
at::Tensor placed(const at::Tensor& values, at::ScalarType type, int64_t offset) {
  return unwritten(values.sizes(), type, offset).copy_(values);
}

void expect_launched(Failure failure) {
  EXPECT_EQ(failure, nullptr) << failure;
}

// `compute` under three schedules, which must agree bit for bit.
template <typename Compute>
Tensors under_schedules(const Compute& compute) {
  cuda_emulation::schedule = {};
  const Tensors results = compute();
  for (const bool last_first : {false, true}) {
    cuda_emulation::schedule = {.most_blocks = 2, .last_thread_first = last_first};
    const Tensors again = compute();
    for (size_t i = 0; i < results.size(); ++i) {
      EXPECT_TRUE(at::equal(results[i].nan_to_num(-7.0), again[i].nan_to_num(-7.0))) << "result " << i;
    }
  }
  cuda_emulation::schedule = {};
  return results;
}

// `kernel`(inputs of a type, output's gradient, offset) gives what testing::run gives of `front_door`.
template <typename Kernel>
void expect_matches(const Kernel& kernel, const testing::Operator& twin, const testing::Operator& front_door,
                    const Tensors& inputs) {
  const at::Tensor seed = random(twin(inputs).sizes());
  const Tensors expected = testing::run(twin, inputs, at::kDouble, seed);
  for (const at::ScalarType type : kTypes) {
    const Tensors on_cpu = testing::run(front_door, inputs, type, seed);
    for (const int64_t offset : {0, 1}) {
      SCOPED_TRACE(std::string(c10::toString(type)) + " offset " + std::to_string(offset));
      Tensors arrays;
      for (const at::Tensor& input : inputs) arrays.push_back(placed(input, type, offset));
      const at::Tensor gradient = placed(seed, type, offset);
      const Tensors actual = under_schedules([&] { return kernel(arrays, gradient, offset); });
      for (size_t i = 0; i < expected.size(); ++i) {
        expect_close(actual[i], expected[i], testing::tolerance(type), "twin, result " + std::to_string(i));
        expect_close(actual[i], on_cpu[i], step(type), "CPU kernel, result " + std::to_string(i));
      }
    }
  }
}

constexpr float kEps = 0.125f;  // so large that the gradient of a row of one column is no difference of equal numbers

Tensors rms_norm_kernels(const Tensors& inputs, const at::Tensor& dy, int64_t offset) {
  const at::Tensor& x = inputs[0];
  const at::Tensor& weight = inputs[1];
  const auto like = [&](const at::Tensor& a) { return unwritten(a.sizes(), a.scalar_type(), offset); };
  const auto floats = [](at::IntArrayRef sizes) { return unwritten(sizes, at::kFloat, 0); };
  const int64_t rows = x.size(0);
  const int64_t columns = x.size(1);
  const Tensors results{like(x), like(x), like(weight)};
  const at::Tensor inverse = floats({rows});
  const at::Tensor partial = floats({weight_gradient_pieces(rows, columns), columns});
  const KernelTable& kernels = *fettle_cuda_kernels();
  expect_launched(kernels.rms_norm({.type = type_of(x),
                                    .rows = rows,
                                    .columns = columns,
                                    .eps = kEps,
                                    .x = x.const_data_ptr(),
                                    .weight = weight.const_data_ptr(),
                                    .y = results[0].mutable_data_ptr(),
                                    .inverse_rms = inverse.mutable_data_ptr<float>()},
                                   nullptr));
  expect_launched(kernels.rms_norm_backward({.type = type_of(x),
                                             .rows = rows,
                                             .columns = columns,
                                             .dy = dy.const_data_ptr(),
                                             .x = x.const_data_ptr(),
                                             .weight = weight.const_data_ptr(),
                                             .inverse_rms = inverse.const_data_ptr<float>(),
                                             .dx = results[1].mutable_data_ptr(),
                                             .partial = partial.mutable_data_ptr<float>(),
                                             .d_weight = results[2].mutable_data_ptr()},
                                            nullptr));
  return results;
}

struct Size {
  int64_t rows;
  int64_t columns;
};
// Of each kind that the kernels tell apart: by the element or by 16 bytes, a warp or a block a row, several rows and
// tiles of columns for a block, several pieces of rows (more than the 64 of one).
const std::vector<Size> kSizes{{0, 8}, {1, 1}, {3, 33}, {9, 64}, {1, 576}, {5, 1100}, {1, 2056}, {300, 8}, {520, 72}};

TEST_F(CudaKernels, RmsNorm) {
  for (const auto& [rows, columns] : kSizes) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns));
    expect_matches(
        rms_norm_kernels, [](const auto& in) { return composite::rms_norm(in[0], in[1], kEps); },
        [](const auto& in) { return ops::rms_norm(in[0], in[1], kEps); }, {random({rows, columns}), random({columns})});
  }
}

TEST_F(CudaKernels, RmsNormRoundsAsTheCpuKernel) {
  const at::Tensor x = at::full({1, 16}, 1.7109375, at::kBFloat16);
  const at::Tensor weight = random({16}).to(at::kBFloat16);
  EXPECT_TRUE(at::equal(rms_norm_kernels({x, weight}, x, 0)[0], ops::rms_norm(x, weight, kEps)));
}

TEST_F(CudaKernels, RmsNormPropagatesNan) {
  const at::Tensor x = random({2, 64}).to(at::kBFloat16);
  x[1][3] = kNan;
  const at::Tensor y = rms_norm_kernels({x, random({64}).to(at::kBFloat16)}, x, 0)[0];
  EXPECT_FALSE(y[0].isnan().any().item<bool>());
  EXPECT_TRUE(y[1].isnan().all().item<bool>());
}

TEST_F(CudaKernels, RmsNormLeavesTheWeightsGradientOutWhereNoneIsAsked) {
  const at::Tensor x = random({5, 16}).to(at::kFloat);
  const at::Tensor inverse = at::full({5}, 1.0f);
  const at::Tensor dx = unwritten({5, 16}, at::kFloat, 0);
  const int before = cuda_emulation::launches;
  expect_launched(fettle_cuda_kernels()->rms_norm_backward({.type = Type::kFloat,
                                                            .rows = 5,
                                                            .columns = 16,
                                                            .dy = x.const_data_ptr(),
                                                            .x = x.const_data_ptr(),
                                                            .weight = x.const_data_ptr(),
                                                            .inverse_rms = inverse.const_data_ptr<float>(),
                                                            .dx = dx.mutable_data_ptr(),
                                                            .partial = nullptr,
                                                            .d_weight = nullptr},
                                                           nullptr));
  EXPECT_FALSE(dx.isnan().any().item<bool>());
  EXPECT_EQ(cuda_emulation::launches, before + 1);
}

at::Tensor rotary_kernel(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, float sign) {
  const at::Tensor y = unwritten(x.sizes(), x.scalar_type(), x.storage_offset());
  expect_launched(fettle_cuda_kernels()->rotary({.type = type_of(x),
                                                 .tokens = x.size(0),
                                                 .heads = x.size(1),
                                                 .head_dim = x.size(2),
                                                 .half = cos.size(1),
                                                 .sign = sign,
                                                 .x = x.const_data_ptr(),
                                                 .cos = cos.const_data_ptr(),
                                                 .sin = sin.const_data_ptr(),
                                                 .y = y.mutable_data_ptr()},
                                                nullptr));
  return y;
}

TEST_F(CudaKernels, Rotary) {
  for (const int64_t half : {1, 4, 33, 64}) {
    for (const int64_t rest : {0, 6, 16}) {
      for (const Size size : {Size{0, 2}, {1, 1}, {5, 3}, {4, 40}}) {  // tokens, heads
        SCOPED_TRACE(std::to_string(half) + " + " + std::to_string(rest) + " heads " + std::to_string(size.columns));
        const at::Tensor cos = random({size.rows, half});
        const at::Tensor sin = random({size.rows, half});
        const auto with = [&](auto* op) {
          return
              [&, op](const auto& in) { return op(in[0], cos.to(in[0].scalar_type()), sin.to(in[0].scalar_type())); };
        };
        const auto kernel = [&](const Tensors& in, const at::Tensor& gradient, int64_t offset) {
          const at::Tensor c = placed(cos, in[0].scalar_type(), offset);
          const at::Tensor s = placed(sin, in[0].scalar_type(), offset);
          return Tensors{rotary_kernel(in[0], c, s, 1.0f), rotary_kernel(gradient, c, s, -1.0f)};
        };
        expect_matches(kernel, with(&composite::apply_rotary), with(&apply_rotary),
                       {random({size.rows, size.columns, 2 * half + rest})});
      }
    }
  }
}

Tensors swiglu_kernels(const Tensors& inputs, const at::Tensor& dy, int64_t offset) {
  const auto like = [&](const at::Tensor& a) { return unwritten(a.sizes(), a.scalar_type(), offset); };
  const Tensors results{like(dy), like(dy), like(dy)};
  const void* gate = inputs[0].const_data_ptr();
  const void* up = inputs[1].const_data_ptr();
  const KernelTable& kernels = *fettle_cuda_kernels();
  expect_launched(kernels.swiglu(
      {.type = type_of(dy), .count = dy.numel(), .gate = gate, .up = up, .y = results[0].mutable_data_ptr()}, nullptr));
  expect_launched(kernels.swiglu_backward({.type = type_of(dy),
                                           .count = dy.numel(),
                                           .dy = dy.const_data_ptr(),
                                           .gate = gate,
                                           .up = up,
                                           .d_gate = results[1].mutable_data_ptr(),
                                           .d_up = results[2].mutable_data_ptr()},
                                          nullptr));
  return results;
}

TEST_F(CudaKernels, Swiglu) {
  for (const int64_t count : {0, 1, 31, 4097, 20000}) {
    SCOPED_TRACE(count);
    expect_matches(
        swiglu_kernels, [](const auto& in) { return composite::swiglu(in[0], in[1]); },
        [](const auto& in) { return ops::swiglu(in[0], in[1]); }, {random({count}) * 4, random({count})});
  }
}

TEST_F(CudaKernels, SwigluIsFiniteWhereTheExponentialIsNot) {
  const at::Tensor gate = at::tensor({-1e30f, -200.0f, -88.0f, 88.0f, 200.0f, 1e30f});
  const at::Tensor ones = at::full({6}, 1.0f);
  const Tensors results = swiglu_kernels({gate, ones}, ones, 0);
  for (const at::Tensor& result : results) EXPECT_TRUE(result.isfinite().all().item<bool>());
  EXPECT_EQ(results[0][5].item<float>(), 1e30f);
  EXPECT_NEAR(results[0][1].item<float>(), 0.0f, 1e-30f);
}

struct CrossEntropyResult {
  at::Tensor losses;
  at::Tensor gradient;
};
CrossEntropyResult cross_entropy_kernel(const at::Tensor& logits, const at::Tensor& labels, bool write_gradient) {
  CrossEntropyResult result{unwritten({logits.size(0)}, at::kFloat, 0),
                            placed(logits, logits.scalar_type(), logits.storage_offset())};
  expect_launched(fettle_cuda_kernels()->cross_entropy({.type = type_of(logits),
                                                        .rows = logits.size(0),
                                                        .columns = logits.size(1),
                                                        .write_gradient = write_gradient,
                                                        .ignored = -100,
                                                        .logits = result.gradient.mutable_data_ptr(),
                                                        .labels = labels.const_data_ptr<int64_t>(),
                                                        .losses = result.losses.mutable_data_ptr<float>()},
                                                       nullptr));
  return result;
}

// Rows with a label, one by one, in float64. The loss is a difference of numbers as large as the logits, and the
// gradient at the label one from 1.
void expect_cross_entropy(const at::Tensor& logits, const at::Tensor& labels, const CrossEntropyResult& actual) {
  const at::ScalarType type = logits.scalar_type();
  for (int64_t row = 0; row < logits.size(0); ++row) {
    const at::Tensor label = labels.narrow(0, row, 1);
    if (label.item<int64_t>() == -100) {
      EXPECT_EQ(actual.losses[row].item<float>(), 0.0f);
      EXPECT_EQ(actual.gradient[row].abs().max().item<float>(), 0.0f);
      continue;
    }
    const at::Tensor wide = logits[row].to(at::kDouble);
    const double loss = (wide.logsumexp(0) - wide.index({label})[0]).item<double>();
    const double largest = std::max(1.0, wide.abs().max().item<double>());
    EXPECT_NEAR(actual.losses[row].item<double>(), loss, largest * testing::tolerance(at::kFloat));
    const at::Tensor gradient = wide.softmax(0) - at::one_hot(label, logits.size(1))[0];
    const double relative = type == at::kFloat ? 2e-5 : step(type);
    EXPECT_TRUE(at::allclose(actual.gradient[row].to(at::kDouble), gradient, relative, 2e-7)) << "row " << row;
  }
}

// Of a short row: the CPU kernel's sums over a long one are less exact.
void expect_as_on_cpu(const at::Tensor& logits, const at::Tensor& labels, const CrossEntropyResult& actual) {
  const at::Tensor on_cpu = logits[0].clone();
  const at::Tensor loss = at::empty({1}, at::kFloat);
  with_element_type(logits, [&]<typename T>(T) {
    cpu::cross_entropy(on_cpu.mutable_data_ptr<T>(), labels.const_data_ptr<int64_t>(), loss.mutable_data_ptr<float>(),
                       {1, logits.size(1), true});
  });
  const double largest = std::max(1.0, logits[0].abs().max().item<double>());
  EXPECT_NEAR(actual.losses[0].item<double>(), loss.item<double>(), largest * step(at::kFloat));
  expect_close(actual.gradient[0], on_cpu, std::max(step(logits.scalar_type()), 1e-5), "CPU kernel");
}

TEST_F(CudaKernels, CrossEntropy) {
  for (const int64_t columns : {1, 2, 8, 33, 1000, 4099}) {
    const at::Tensor labels = at::tensor({int64_t{0}, int64_t{-100}, columns - 1, columns / 2, int64_t{-100}});
    for (const at::ScalarType type : kTypes) {
      for (const int64_t offset : {0, 1, 3}) {
        SCOPED_TRACE(std::to_string(columns) + " " + c10::toString(type) + " offset " + std::to_string(offset));
        const at::Tensor logits = placed(random({5, columns}) * 4, type, offset);
        CrossEntropyResult result;
        under_schedules([&] {
          result = cross_entropy_kernel(logits, labels, true);
          return Tensors{result.losses, result.gradient};
        });
        expect_cross_entropy(logits, labels, result);
        expect_as_on_cpu(logits, labels, result);
      }
    }
  }
}

TEST_F(CudaKernels, CrossEntropyOfALargeOddVocabulary) {
  constexpr int64_t kColumns = 151'937;
  const at::Tensor labels = at::tensor({kColumns - 1, int64_t{7}});
  for (const at::ScalarType type : kTypes) {
    const at::Tensor logits = placed(random({2, kColumns}) * 3, type, 1);
    expect_cross_entropy(logits, labels, cross_entropy_kernel(logits, labels, true));
  }
}

TEST_F(CudaKernels, CrossEntropyWithoutTargetsOrRowsOrGradient) {
  const at::Tensor logits = random({3, 50}).to(at::kFloat);
  logits[1][4] = kNan;  // an ignored row's logits do not matter
  const CrossEntropyResult ignored = cross_entropy_kernel(logits, at::full({3}, -100, at::kLong), true);
  EXPECT_TRUE(at::equal(ignored.losses, at::zeros({3})));
  EXPECT_TRUE(at::equal(ignored.gradient, at::zeros({3, 50})));
  EXPECT_EQ(cross_entropy_kernel(logits.narrow(0, 0, 0), at::full({0}, 0, at::kLong), true).losses.numel(), 0);
  const at::Tensor rows = random({9, 1000}).to(at::kFloat);
  const at::Tensor labels = at::full({9}, 3, at::kLong);
  const Tensors loss_only = under_schedules([&] {
    const CrossEntropyResult result = cross_entropy_kernel(rows, labels, false);
    return Tensors{result.losses, result.gradient};
  });
  EXPECT_TRUE(at::equal(loss_only[1], rows));
  EXPECT_TRUE(at::equal(loss_only[0], cross_entropy_kernel(rows, labels, true).losses));
}

TEST_F(CudaKernels, CrossEntropyShowsNanAndLabelsOutsideAsNan) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const at::Tensor logits = random({6, 700}).to(at::kFloat);
  logits[0][699] = kNan;
  logits[1].fill_(-kInfinity);
  logits[2][5] = kInfinity;
  const CrossEntropyResult result = cross_entropy_kernel(logits, at::tensor({3, 3, 3, -1, 700, 3}, at::kLong), true);
  for (int64_t row = 0; row < 5; ++row) {
    EXPECT_TRUE(std::isnan(result.losses[row].item<float>())) << row;
    EXPECT_TRUE(result.gradient[row].isnan().any().item<bool>()) << row;
  }
  EXPECT_TRUE(result.gradient[5].isfinite().all().item<bool>());
}

TEST_F(CudaKernels, CrossEntropyOfExtremeLogits) {
  const at::Tensor logits = at::tensor({-300.0f, -std::numeric_limits<float>::infinity(), 300.0f}).repeat({2, 1});
  const CrossEntropyResult result = cross_entropy_kernel(logits, at::tensor({2, 0}, at::kLong), true);
  EXPECT_NEAR(result.losses[0].item<float>(), 0.0f, 1e-6f);
  EXPECT_NEAR(result.losses[1].item<float>(), 600.0f, 1e-3f);
  EXPECT_TRUE(at::equal(result.gradient[1], at::tensor({-1.0f, 0.0f, 1.0f})));
}

// The values as the definition has them, in float32 and then rounded.
at::Tensor dequantized(const at::Tensor& codes, const Dequantize& p, at::ScalarType type) {
  const at::Tensor values = at::empty({p.count}, at::kFloat);
  const auto* bytes = codes.const_data_ptr<uint8_t>();
  auto* to = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < p.count; ++i) {
    const int nibble = i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15;
    const float code = p.bits == 4 ? p.codebook[nibble] : static_cast<float>(static_cast<int8_t>(bytes[i]));
    to[i] = code * p.scales[i / p.group];
  }
  return values.to(type);
}

TEST_F(CudaKernels, Dequantize) {
  const at::Tensor codebook = random({16}).to(at::kFloat);
  for (const int bits : {4, 8}) {
    for (const int64_t count : {0, 1, 2, 33, 129, 5000}) {
      for (const int64_t group : {1, 3, 12, 32, 64, 6000}) {
        const at::Tensor scales = random({(count + group - 1) / group}).to(at::kFloat) * 0.37f;
        for (const int64_t offset : {0, 1}) {
          const int64_t bytes = bits == 4 ? (count + 1) / 2 : count;
          const at::Tensor codes = at::randint(0, 256, {bytes + offset}, at::kByte).slice(0, offset);
          for (const at::ScalarType type : kTypes) {
            SCOPED_TRACE(std::to_string(bits) + " bits, " + std::to_string(count) + " in groups of " +
                         std::to_string(group) + ", offset " + std::to_string(offset) + " " + c10::toString(type));
            Dequantize p{.type = type == at::kFloat ? Type::kFloat : Type::kBFloat16,
                         .bits = bits,
                         .count = count,
                         .group = group,
                         .codes = codes.const_data_ptr(),
                         .scales = scales.const_data_ptr<float>(),
                         .codebook = {},
                         .values = nullptr};
            std::copy_n(codebook.const_data_ptr<float>(), 16, p.codebook);
            const at::Tensor actual = under_schedules([&] {
              const at::Tensor values = unwritten({count}, type, offset);
              p.values = values.mutable_data_ptr();
              expect_launched(fettle_cuda_kernels()->dequantize(p, nullptr));
              return Tensors{values};
            })[0];
            EXPECT_TRUE(at::equal(actual, dequantized(codes, p, type)));
          }
        }
      }
    }
  }
}

TEST_F(CudaKernels, DequantizeRefusesOtherWidths) {
  Dequantize p{};
  p.bits = 5;
  p.group = 64;
  EXPECT_NE(fettle_cuda_kernels()->dequantize(p, nullptr), nullptr);
}

TEST_F(CudaKernels, LaunchOnTheGivenStream) {
  int stream = 0;  // a handle is never looked into
  const at::Tensor x = at::full({4}, 1.0f);
  const at::Tensor y = at::empty({4}, at::kFloat);
  expect_launched(fettle_cuda_kernels()->swiglu(
      {Type::kFloat, 4, x.const_data_ptr(), x.const_data_ptr(), y.mutable_data_ptr()}, &stream));
  EXPECT_EQ(static_cast<void*>(cuda_emulation::last_stream), &stream);
}

// What the other tests rely on: the emulation sees what would be luck on a GPU.
void one_thread_skips_the_barrier() {
  if (threadIdx.x != 40) __syncthreads();
}
TEST(CudaEmulation, SeesABarrierThatAThreadNeverReaches) {
  const cudaLaunchConfig_t config{.gridDim = 1, .blockDim = 64};
  EXPECT_THROW(cudaLaunchKernelEx(&config, one_thread_skips_the_barrier), std::logic_error);
}

void add_to_the_left_without_a_barrier(int* values) {
  __shared__ int shared[64];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  values[threadIdx.x] = shared[threadIdx.x / 2 + 16];
}
TEST(CudaEmulation, AnotherOrderOfThreadsShowsAMissingBarrier) {
  const cudaLaunchConfig_t config{.gridDim = 1, .blockDim = 64};
  std::array<std::array<int, 64>, 2> values{};
  for (const bool last_first : {false, true}) {
    cuda_emulation::schedule.last_thread_first = last_first;
    cudaLaunchKernelEx(&config, add_to_the_left_without_a_barrier, values[last_first ? 1 : 0].data());
  }
  cuda_emulation::schedule = {};
  EXPECT_NE(values[0], values[1]);
}

}  // namespace
}  // namespace fettle::ops::cuda
