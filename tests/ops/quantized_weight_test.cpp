// SPDX-License-Identifier: Apache-2.0
/// Weights in few bits: against their twin, against the nearest value there is, and inside lora_linear.
#include "ops/quantized_weight.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/lora_linear.h"
#include "reference.h"

namespace fettle::ops {
namespace {

using testing::expect_matches_twin;
using testing::random;

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kNf4, WeightFormat::kFp4};

class Formats : public ::testing::TestWithParam<WeightFormat> {};
INSTANTIATE_TEST_SUITE_P(All, Formats, ::testing::ValuesIn(kFormats),
                         [](const auto& info) { return std::string(name(info.param)); });

// Whole blocks and short ones, an odd number of elements, rows that blocks straddle.
const std::vector<std::vector<int64_t>>& matrix_shapes() {
  static const std::vector<std::vector<int64_t>> all{{1, 1}, {3, 21}, {5, 13}, {64, 64}, {7, 129}, {300, 200}};
  return all;
}

TEST_P(Formats, ExpandAsTheTwinBitForBit) {
  for (const auto& shape : matrix_shapes()) {
    for (const at::ScalarType stored : {at::kFloat, at::kBFloat16}) {
      const QuantizedWeight weight = quantize((random(shape) * 0.02).to(stored), GetParam());
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        EXPECT_TRUE(at::equal(dequantize(weight, type), composite::dequantize(weight, type)))
            << shape[0] << "x" << shape[1] << " from " << stored << " to " << type;
      }
    }
  }
}

/// The largest difference that rounding to the nearest value leaves: half the widest gap between two values.
double half_gap(WeightFormat format) {
  if (format == WeightFormat::kInt8) return 0.5 / 127;
  if (format == WeightFormat::kInt4) return 0.125;  // the largest of the other sign has no code of its own
  auto values = codebook(format);
  std::ranges::sort(values);
  double widest = 0;
  for (size_t i = 1; i < values.size(); ++i) widest = std::max(widest, double{values[i]} - double{values[i - 1]});
  return widest / 2;
}

TEST_P(Formats, TakeTheNearestValue) {
  for (const auto& shape : matrix_shapes()) {
    const at::Tensor weight = random(shape);
    const QuantizedWeight quantized = quantize(weight.to(at::kFloat), GetParam());
    const at::Tensor difference = (dequantize(quantized, at::kFloat).to(at::kDouble) - weight).abs().flatten();
    for (int64_t i = 0; i < difference.numel(); i += kQuantizationBlock) {
      const int64_t size = std::min(kQuantizationBlock, difference.numel() - i);
      const double largest = weight.flatten().narrow(0, i, size).abs().max().item<double>();
      EXPECT_LE(difference.narrow(0, i, size).max().item<double>(), largest * (half_gap(GetParam()) + 1e-6));
    }
  }
}

TEST_P(Formats, KeepTheirOwnValues) {
  const at::Tensor weight = dequantize(quantize(random({8, 64}).to(at::kFloat), GetParam()), at::kFloat);
  EXPECT_TRUE(at::allclose(dequantize(quantize(weight, GetParam()), at::kFloat), weight, 1e-6, 0));
}

TEST_P(Formats, KeepZerosAndWhatIsNotFinite) {
  at::Tensor weight = at::zeros({2, kQuantizationBlock});
  weight[0][3] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor back = dequantize(quantize(weight, GetParam()), at::kFloat);
  EXPECT_TRUE(back[0].isnan().all().item<bool>());
  EXPECT_EQ(back[1].abs().max().item<float>(), 0.0f);
  weight[0][3] = -std::numeric_limits<float>::infinity();
  EXPECT_TRUE(dequantize(quantize(weight, GetParam()), at::kFloat)[0].isnan().all().item<bool>());
}

TEST_P(Formats, TakeTheBytesTheyPromise) {
  const QuantizedWeight weight = quantize(random({64, 64}).to(at::kBFloat16), GetParam());
  EXPECT_EQ(weight.bytes(), (GetParam() == WeightFormat::kInt8 ? 4096 : 2048) + 64 * 4);
}

// With a dense layer beside it, and one without LoRA.
TEST_P(Formats, TrainAsTheWeightTheyStandFor) {
  const QuantizedWeight first = quantize(random({24, 16}).to(at::kFloat), GetParam());
  const QuantizedWeight second = quantize(random({9, 16}).to(at::kFloat), GetParam());
  const at::Tensor third = random({8, 16});
  const auto op = [&](auto* lora, bool expanded) {
    return [&, lora, expanded](const std::vector<at::Tensor>& in) {
      const auto type = in[0].scalar_type();
      const auto weight = [&](const QuantizedWeight& of) {
        return expanded ? Weight(dequantize(of, type)) : Weight(of);
      };
      const std::vector<LoraProjection> projections{
          {weight(first), {}, in[1], in[2]}, {weight(second), {}, {}, {}}, {third.to(type), {}, in[3], in[4]}};
      return at::cat(lora(in[0], projections, LoraOptions{.scaling = 0.5, .dropout = 0}), 1);
    };
  };
  const std::vector<at::Tensor> inputs{random({50, 16}), random({4, 16}), random({24, 4}), random({4, 16}),
                                       random({8, 4})};
  expect_matches_twin(op(&lora_linear, false), op(&composite::lora_linear, true), inputs);
  const at::Tensor seed = random({50, 41});
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const auto actual = testing::run(op(&lora_linear, false), inputs, type, seed);
    const auto expected = testing::run(op(&lora_linear, true), inputs, type, seed);
    for (size_t i = 0; i < actual.size(); ++i) EXPECT_TRUE(at::equal(actual[i], expected[i])) << type << " " << i;
  }
}

TEST(Float8, RoundsToThreeBitsOfMantissa) {
  for (const auto& shape : matrix_shapes()) {
    const at::Tensor weight = random(shape);
    const QuantizedWeight quantized = quantize(weight.to(at::kFloat), WeightFormat::kFp8);
    EXPECT_EQ(quantized.bytes(), weight.numel() + 4);
    const double largest = weight.abs().max().item<double>();
    EXPECT_LE(quantized.codes.to(at::kFloat).abs().max().item<double>(), kLargestFp8);
    const at::Tensor back = dequantize(quantized, at::kFloat).to(at::kDouble);
    const double smallest_normal = largest / kLargestFp8 * std::pow(2.0, -6);
    const at::Tensor allowed = weight.abs().clamp_min(smallest_normal).mul_(std::pow(2.0, -4) * 1.001);
    EXPECT_TRUE(((back - weight).abs() <= allowed).all().item<bool>());
    EXPECT_TRUE(
        at::equal(dequantize(quantize(back.to(at::kFloat), WeightFormat::kFp8), at::kFloat), back.to(at::kFloat)));
  }
}

TEST(Float8, KeepsZerosAndShowsWhatIsNotFinite) {
  at::Tensor weight = at::zeros({2, 8});
  EXPECT_TRUE(at::equal(dequantize(quantize(weight, WeightFormat::kFp8), at::kFloat), weight));
  weight[1][3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(dequantize(quantize(weight, WeightFormat::kFp8), at::kFloat).isnan().any().item<bool>());
}

TEST(Float8, TrainsAsTheWeightThatItStandsFor) {
  const QuantizedWeight quantized = quantize(random({24, 16}).to(at::kFloat), WeightFormat::kFp8);
  const auto op = [&](bool expanded) {
    return [&, expanded](const std::vector<at::Tensor>& in) {
      const Weight weight = expanded ? Weight(dequantize(quantized, in[0].scalar_type())) : Weight(quantized);
      return lora_linear(in[0], {{weight, {}, in[1], in[2]}}, {.scaling = 0.5, .dropout = 0})[0];
    };
  };
  const std::vector<at::Tensor> inputs{random({50, 16}), random({4, 16}), random({24, 4})};
  const at::Tensor seed = random({50, 24});
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const auto actual = testing::run(op(false), inputs, type, seed);
    const auto expected = testing::run(op(true), inputs, type, seed);
    for (size_t i = 0; i < actual.size(); ++i) EXPECT_TRUE(at::equal(actual[i], expected[i])) << type << " " << i;
  }
}

}  // namespace
}  // namespace fettle::ops
