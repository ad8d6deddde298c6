// SPDX-License-Identifier: Apache-2.0
#include "hub/quantization.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "base/error.h"
#include "hub/safetensors.h"
#include "hub/support.h"
#include "support/temporary_folder.h"

namespace fettle::hub {
namespace {

using testing::HasSubstr;

QuantizedMatrix random_matrix(int bits, int64_t group, bool symmetric, bool mixed_groups = false) {
  constexpr int64_t kRows = 32;
  constexpr int64_t kColumns = 96;
  std::mt19937 random(static_cast<unsigned>(bits));
  QuantizedMatrix matrix{.bits = bits, .rows = kRows, .columns = kColumns, .group = group};
  const int64_t groups = kColumns / group;
  for (int64_t i = 0; i < kRows * kColumns; ++i) matrix.codes.push_back(static_cast<uint8_t>(random() % (1u << bits)));
  for (int64_t i = 0; i < kRows * groups; ++i) {
    matrix.scales.push_back(0.25f * static_cast<float>(1 + random() % 64));
    // From 1 on, which every layout can store; one bit has only 0 besides the middle.
    if (!symmetric) matrix.zeros.push_back(static_cast<uint8_t>(bits == 1 ? i % 2 : 1 + random() % ((1u << bits) - 1)));
  }
  for (int64_t i = 0; mixed_groups && i < kColumns; ++i) matrix.group_of.push_back(static_cast<int32_t>(i % groups));
  return matrix;
}

/// Through a file.
class Layouts : public testing::TestWithParam<std::tuple<QuantizedLayout, int, int64_t, bool>> {
 protected:
  [[nodiscard]] TensorSource write(const std::vector<StoredTensor>& tensors) const {
    std::vector<TensorView> views;
    for (const StoredTensor& tensor : tensors) views.push_back(tensor.view);
    write_safetensors(folder_.path() / "model.safetensors", views, {});
    return TensorSource::open_safetensors(folder_.path());
  }

  TemporaryFolder folder_;
};

TEST_P(Layouts, GiveBackWhatTheyWereGiven) {
  const auto [layout, bits, group, symmetric] = GetParam();
  const Quantization quantization{
      .layout = layout, .bits = bits, .group = group == 96 ? -1 : group, .symmetric = symmetric};
  const QuantizedMatrix matrix = random_matrix(bits, group, symmetric);
  const TensorSource source = write(encode(quantization, "layer", matrix, quantization.scale_type(DType::kF32)));
  for (const TensorView& expected : expected_tensors(quantization, source, "layer", matrix.rows, matrix.columns)) {
    const TensorView* found = source.find(expected.name);
    ASSERT_NE(found, nullptr) << expected.name;
    EXPECT_EQ(found->shape, expected.shape) << expected.name;
  }
  const QuantizedMatrix read = decode(quantization, source, "layer", matrix.rows, matrix.columns);
  EXPECT_EQ(read.codes, matrix.codes);
  EXPECT_EQ(read.scales, matrix.scales);
  EXPECT_EQ(read.zeros, matrix.zeros);
  EXPECT_EQ(read.group_of, matrix.group_of);
}

INSTANTIATE_TEST_SUITE_P(CompressedTensors, Layouts,
                         testing::Combine(testing::Values(QuantizedLayout::kCompressedTensors), testing::Range(2, 9),
                                          testing::Values(32, 96), testing::Bool()));
INSTANTIATE_TEST_SUITE_P(OneBit, Layouts,
                         testing::Combine(testing::Values(QuantizedLayout::kCompressedTensors), testing::Values(1),
                                          testing::Values(32), testing::Values(false)));
INSTANTIATE_TEST_SUITE_P(Gptq, Layouts,
                         testing::Combine(testing::Values(QuantizedLayout::kGptq, QuantizedLayout::kGptqV2),
                                          testing::Values(2, 3, 4, 8), testing::Values(32, 96), testing::Bool()));
INSTANTIATE_TEST_SUITE_P(Awq, Layouts,
                         testing::Combine(testing::Values(QuantizedLayout::kAwq), testing::Values(4),
                                          testing::Values(32, 96), testing::Bool()));

TEST(GptqLayout, KeepsTheGroupOfEachInput) {
  const TemporaryFolder folder;
  const Quantization quantization{.layout = QuantizedLayout::kGptqV2, .bits = 4, .group = 32, .act_order = true};
  const QuantizedMatrix matrix = random_matrix(4, 32, true, /*mixed_groups=*/true);
  std::vector<TensorView> views;
  const auto tensors = encode(quantization, "layer", matrix, DType::kF16);
  for (const StoredTensor& tensor : tensors) views.push_back(tensor.view);
  write_safetensors(folder.path() / "model.safetensors", views, {});
  const TensorSource source = TensorSource::open_safetensors(folder.path());
  EXPECT_EQ(decode(quantization, source, "layer", 32, 96).group_of, matrix.group_of);
  std::erase_if(views, [](const TensorView& view) { return view.name.ends_with("g_idx"); });
  write_safetensors(folder.path() / "model.safetensors", views, {});
  const TensorSource without = TensorSource::open_safetensors(folder.path());
  expect_error([&] { decode(quantization, without, "layer", 32, 96); }, ExitCode::kData, "layer.g_idx is missing");
}

TEST(CompressedTensorsLayout, IsAStreamOfBits) {
  QuantizedMatrix matrix{.bits = 3, .rows = 1, .columns = 32, .group = 32};
  for (int i = 0; i < 32; ++i) matrix.codes.push_back(static_cast<uint8_t>(i % 8));
  matrix.scales = {1.0f};
  const auto tensors = encode({.bits = 3}, "layer", matrix, DType::kF32);
  EXPECT_EQ(tensors[0].view.name, "layer.weight_packed");
  EXPECT_EQ(tensors[0].view.shape, (std::vector<int64_t>{1, 3}));
  uint32_t first = 0;
  std::memcpy(&first, tensors[0].bytes.data(), sizeof(first));
  // 0 1 2 3 4 5 6 7 0 1, and the two low bits of 2, each in three bits from the lowest on.
  EXPECT_EQ(first, 0b10'001'000'111'110'101'100'011'010'001'000u);
}

TEST(CompressedTensorsLayout, HoldsTheShapeThatItSays) {
  const QuantizedMatrix matrix = random_matrix(4, 32, true);
  std::vector<StoredTensor> tensors = encode({.bits = 4, .group = 32}, "layer", matrix, DType::kF32);
  const auto shape = std::ranges::find(tensors, "layer.weight_shape", [](const auto& each) { return each.view.name; });
  ASSERT_NE(shape, tensors.end());
  const int64_t wrong = matrix.rows + 1;
  std::memcpy(shape->bytes.data(), &wrong, sizeof(wrong));
  const TemporaryFolder folder;
  std::vector<TensorView> views;
  for (const StoredTensor& tensor : tensors) views.push_back(tensor.view);
  write_safetensors(folder / "model.safetensors", views, {});
  const TensorSource source = TensorSource::open_safetensors(folder.path());
  expect_error([&] { decode({.bits = 4, .group = 32}, source, "layer", matrix.rows, matrix.columns); }, ExitCode::kData,
               "layer.weight_shape says 33 x 96 and should say 32 x 96");
}

TEST(OrderOfColumns, IsRefusedByLayoutsWithoutAPlaceForIt) {
  const QuantizedMatrix matrix = random_matrix(4, 32, true, /*mixed_groups=*/true);
  for (const QuantizedLayout layout : {QuantizedLayout::kCompressedTensors, QuantizedLayout::kAwq}) {
    try {
      encode({.layout = layout, .bits = 4, .group = 32}, "layer", matrix, DType::kF16);
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kConfig);
      EXPECT_THAT(error.what(), HasSubstr("layer"));
    }
  }
}

TEST(QuantizationConfig, IsReadBack) {
  for (const QuantizedLayout layout :
       {QuantizedLayout::kCompressedTensors, QuantizedLayout::kGptq, QuantizedLayout::kGptqV2, QuantizedLayout::kAwq}) {
    for (const bool symmetric : {true, false}) {
      for (const int64_t group : {-1, 64}) {
        const Quantization given{.layout = layout, .bits = 4, .group = group, .symmetric = symmetric};
        const auto read = read_quantization({{"quantization_config", quantization_config(given)}});
        ASSERT_TRUE(read);
        EXPECT_EQ(read->layout, layout);
        EXPECT_EQ(read->bits, 4);
        EXPECT_EQ(read->group, group);
        EXPECT_EQ(read->symmetric, symmetric);
      }
    }
  }
  EXPECT_FALSE(read_quantization(nlohmann::json::object()));
  const auto capitals = nlohmann::json::parse(R"({"quant_method": "awq", "bits": 4, "version": "GEMM"})");
  EXPECT_EQ(read_quantization({{"quantization_config", capitals}})->layout, QuantizedLayout::kAwq);
}

TEST(QuantizationConfig, OfAnotherKindIsRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("none")", "is not an object"},
      {R"({})", "quant_method is missing"},
      {R"({"quant_method": "bitsandbytes"})", "bitsandbytes"},
      {R"({"quant_method": "gptq", "bits": 5})", "bits is 5"},
      {R"({"quant_method": "gptq", "bits": "4"})", "bits is not a whole number"},
      {R"({"quant_method": "gptq", "bits": 4, "group_size": 0})", "group_size is 0"},
      {R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"})", "marlin"},
      {R"({"quant_method": "awq", "bits": 4, "version": "gemv"})", "gemv"},
      {R"({"quant_method": "compressed-tensors", "format": "int-quantized"})", "int-quantized"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized"})", "config_groups is missing"},
      {R"({"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}})", "config_groups"},
      {R"({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 9}}}})",
       "num_bits is 9"},
      {R"({"quant_method": "compressed-tensors",
           "config_groups": {"a": {"weights": {"num_bits": 4}, "input_activations": {"num_bits": 8}}}})",
       "input_activations"},
  };
  for (const auto& [text, message] : cases) {
    try {
      read_quantization({{"quantization_config", nlohmann::json::parse(text)}});
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kConfig);
      EXPECT_THAT(error.what(), HasSubstr(message));
    }
  }
}

}  // namespace
}  // namespace fettle::hub
