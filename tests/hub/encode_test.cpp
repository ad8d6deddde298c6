// SPDX-License-Identifier: Apache-2.0
#include "hub/encode.h"

#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <limits>

#include "hub/gguf.h"
#include "hub/gguf_format.h"
#include "hub/support.h"

namespace fettle::hub {
namespace {

std::string encode(std::span<const float> values, DType dtype) {
  const BlockLayout layout = block_layout(dtype);
  std::string bytes(values.size() / static_cast<size_t>(layout.elements) * static_cast<size_t>(layout.bytes), '\0');
  encode_floats(values, dtype, reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}

std::vector<float> decode(const std::string& bytes, DType dtype, int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  read_floats({.name = "t", .dtype = dtype, .shape = {size}, .bytes = as_bytes(bytes)}, values);
  return values;
}

/// The types of tests/data/gguf/types.gguf, written by the gguf package (tests/golden/make_gguf.py).
class GoldenTypes : public testing::TestWithParam<DType> {};

TEST_P(GoldenTypes, AreTheBytesOfTheGgufPackage) {
  const GgufFile file = GgufFile::open(std::filesystem::path(FETTLE_SOURCE_DIR) / "tests/data/gguf/types.gguf");
  const auto find = [&](DType dtype) {
    const auto found = std::ranges::find(file.tensors(), dtype, &TensorView::dtype);
    EXPECT_NE(found, file.tensors().end());
    return *found;
  };
  const TensorView source = find(DType::kF32);
  std::vector<float> values(static_cast<size_t>(element_count(source)));
  read_floats(source, values);
  const TensorView expected = find(GetParam());
  const std::string bytes = encode(values, GetParam());
  ASSERT_EQ(bytes.size(), expected.bytes.size());
  const auto row = bytes.size() / 24;
  for (size_t i = 0; i < bytes.size(); ++i) {
    ASSERT_EQ(static_cast<std::byte>(bytes[i]), expected.bytes[i]) << "row " << i / row << ", byte " << i % row;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTypes,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0,
                                         DType::kQ4_1, DType::kQ5_0, DType::kQ5_1),
                         [](const auto& information) { return std::string(dtype_name(information.param)); });

TEST(EncodeFloats, KeepsEveryHalf) {
  std::string halves;
  for (uint32_t i = 0; i < 65536; ++i) {
    if ((i & 0x7C00U) != 0x7C00U) halves += little_endian(static_cast<uint16_t>(i));
  }
  const auto size = static_cast<int64_t>(halves.size() / 2);
  EXPECT_EQ(encode(decode(halves, DType::kF16, size), DType::kF16), halves);
}

TEST(EncodeFloats, RoundsToTheNearestHalfAndTiesToEven) {
  for (uint16_t half = 0; half < 0x7BFF; ++half) {
    const std::string pair = little_endian(half) + little_endian(static_cast<uint16_t>(half + 1));
    const auto values = decode(pair, DType::kF16, 2);
    const float middle = (values[0] + values[1]) / 2;
    const std::array<float, 3> around = {std::nextafter(middle, 0.0F), middle, std::nextafter(middle, 1e9F)};
    const auto even = static_cast<uint16_t>(half % 2 == 0 ? half : half + 1);
    ASSERT_EQ(encode(around, DType::kF16),
              little_endian(half) + little_endian(even) + little_endian(static_cast<uint16_t>(half + 1)))
        << half;
  }
}

TEST(EncodeFloats, QuantisesABlockWhoseScaleHasNoInverse) {
  const std::vector<float> values(32, std::numeric_limits<float>::denorm_min());
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1}) {
    EXPECT_THAT(decode(encode(values, dtype), dtype, 32), testing::Each(0.0F)) << dtype_name(dtype);
  }
}

TEST(FindUnstorable, KnowsTheLargestValueOfEachType) {
  const auto storable = [](float value, DType dtype) {
    const std::array<float, 3> values = {0, -value, 1};
    return !find_unstorable(values, dtype).has_value();
  };
  constexpr float kLargest = std::numeric_limits<float>::max();
  const float below = std::nextafter(65520.0F, 0.0F);
  for (const DType dtype : {DType::kF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1}) {
    EXPECT_TRUE(storable(below, dtype));
    EXPECT_FALSE(storable(65520.0F, dtype));
  }
  EXPECT_TRUE(storable(kLargest, DType::kF32));
  EXPECT_FALSE(storable(kLargest, DType::kBF16));
  EXPECT_TRUE(storable(std::bit_cast<float>(0x7F7F7FFFU), DType::kBF16));
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ4_0}) {
    EXPECT_FALSE(storable(std::numeric_limits<float>::infinity(), dtype));
    EXPECT_FALSE(storable(std::numeric_limits<float>::quiet_NaN(), dtype));
  }
}

}  // namespace
}  // namespace fettle::hub
