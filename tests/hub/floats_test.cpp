// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <limits>

#include "hub/support.h"
#include "hub/tensor.h"

namespace fettle::hub {
namespace {

using testing::ElementsAre;

std::vector<float> floats_of(const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(element_count(view)));
  read_floats(view, values);
  return values;
}

/// The value of an IEEE half, from its definition.
double half_value(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  const double sign = (half & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

TEST(ReadFloats, ConvertsEveryHalf) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  const TensorView view = {
      .name = "h", .dtype = DType::kF16, .shape = {65536}, .bytes = std::as_bytes(std::span(halves))};
  const auto values = floats_of(view);
  for (size_t i = 0; i < halves.size(); ++i) {
    const double expected = half_value(halves[i]);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(values[i])) << i;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(static_cast<float>(expected))) << i;
    }
  }
}

TEST(ReadFloats, ConvertsPlainTypesFromUnalignedBytes) {
  const std::string f64 = "." + little_endian(1.5) + little_endian(-1e300);
  EXPECT_THAT(floats_of({.name = "d", .dtype = DType::kF64, .shape = {2}, .bytes = as_bytes(f64).subspan(1)}),
              ElementsAre(1.5F, -std::numeric_limits<float>::infinity()));
  const std::string f32 = "." + little_endian(0.1F) + little_endian(-2.0F);
  EXPECT_THAT(floats_of({.name = "f", .dtype = DType::kF32, .shape = {2}, .bytes = as_bytes(f32).subspan(1)}),
              ElementsAre(0.1F, -2.0F));
  const std::string bf16 = "." + little_endian<uint16_t>(0x3F80) + little_endian<uint16_t>(0xC2F7);
  EXPECT_THAT(floats_of({.name = "b", .dtype = DType::kBF16, .shape = {2}, .bytes = as_bytes(bf16).subspan(1)}),
              ElementsAre(1.0F, -123.5F));
}

/// One block of each quantized type: nibble or byte i of the block is i, scale 0.5, minimum -1.
std::string nibbles() {
  std::string bytes;
  for (int i = 0; i < 16; ++i) bytes += static_cast<char>(i | ((15 - i) << 4));
  return bytes;
}

TEST(ReadFloats, DecodesQuantisedBlocks) {
  const std::string half = little_endian<uint16_t>(0x3800);
  const std::string minus_one = little_endian<uint16_t>(0xBC00);
  std::string bytes = half;
  for (int i = 0; i < 32; ++i) bytes += static_cast<char>(i - 16);
  const auto q8_0 = floats_of({.name = "q", .dtype = DType::kQ8_0, .shape = {1, 32}, .bytes = as_bytes(bytes)});
  const std::string q4_0_bytes = half + nibbles();
  const auto q4_0 = floats_of({.name = "q", .dtype = DType::kQ4_0, .shape = {32}, .bytes = as_bytes(q4_0_bytes)});
  const std::string q4_1_bytes = half + minus_one + nibbles();
  const auto q4_1 = floats_of({.name = "q", .dtype = DType::kQ4_1, .shape = {32}, .bytes = as_bytes(q4_1_bytes)});
  // The fifth bit of every odd element is set.
  const std::string odd = little_endian(0xAAAAAAAAU);
  const std::string q5_0_bytes = half + odd + nibbles();
  const auto q5_0 = floats_of({.name = "q", .dtype = DType::kQ5_0, .shape = {32}, .bytes = as_bytes(q5_0_bytes)});
  const std::string q5_1_bytes = half + minus_one + odd + nibbles();
  const auto q5_1 = floats_of({.name = "q", .dtype = DType::kQ5_1, .shape = {32}, .bytes = as_bytes(q5_1_bytes)});
  for (int i = 0; i < 32; ++i) {
    const float nibble = static_cast<float>(i < 16 ? i : 31 - i);
    const float five_bits = nibble + static_cast<float>(i % 2 * 16);
    const auto at = static_cast<size_t>(i);
    EXPECT_EQ(q5_0[at], 0.5F * (five_bits - 16));
    EXPECT_EQ(q5_1[at], 0.5F * five_bits - 1);
    EXPECT_EQ(q8_0[at], 0.5F * static_cast<float>(i - 16));
    EXPECT_EQ(q4_0[at], 0.5F * (nibble - 8));
    EXPECT_EQ(q4_1[at], 0.5F * nibble - 1);
  }
}

TEST(ReadFloats, ReadsAnyRangeOfBlocksAndOfInterleavedRows) {
  // 2 heads of 4 rows, 32 columns, q8_0 with scale 1: stored row r holds r, plus its column's number times 8 in [0,
  // 15].
  std::string bytes;
  for (int row = 0; row < 8; ++row) {
    bytes += little_endian<uint16_t>(0x3C00);
    for (int column = 0; column < 32; ++column) bytes += static_cast<char>(row + 8 * (column % 15));
  }
  const TensorView view = {
      .name = "q", .dtype = DType::kQ8_0, .shape = {8, 32}, .bytes = as_bytes(bytes), .interleaved_heads = 2};
  const auto whole = floats_of(view);
  std::vector<float> first_column;
  for (size_t row = 0; row < 8; ++row) first_column.push_back(whole[row * 32]);
  EXPECT_THAT(first_column, ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));

  const std::vector<std::pair<int64_t, size_t>> ranges = {{0, 256}, {0, 1},   {31, 2}, {40, 100},
                                                          {255, 1}, {256, 0}, {64, 64}};
  for (const auto& [first, count] : ranges) {
    std::vector<float> part(count, -1);
    read_floats(view, part, first);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first)) << first << " " << count;
  }
}

TEST(ReadFloats, UninterleavesABias) {
  std::string bytes;
  for (int row = 0; row < 6; ++row) bytes += little_endian(static_cast<float>(row));
  EXPECT_THAT(
      floats_of({.name = "b", .dtype = DType::kF32, .shape = {6}, .bytes = as_bytes(bytes), .interleaved_heads = 1}),
      ElementsAre(0, 2, 4, 1, 3, 5));
}

TEST(ReadFloats, RefusesIntegersByName) {
  const std::string bytes(8, '\0');
  for (const DType dtype : {DType::kI64, DType::kU8, DType::kBool}) {
    const TensorView view = {
        .name = "qweight", .dtype = dtype, .shape = {8 / block_layout(dtype).bytes}, .bytes = as_bytes(bytes)};
    expect_error([&] { floats_of(view); }, ExitCode::kData, "tensor 'qweight': " + std::string(dtype_name(dtype)));
  }
}

TEST(ReadFloats, RefusesARangeOutsideTheTensor) {
  const std::string bytes(8, '\0');
  const TensorView view = {.name = "a", .dtype = DType::kF32, .shape = {2}, .bytes = as_bytes(bytes)};
  std::vector<float> out(2);
  expect_error([&] { read_floats(view, out, 1); }, ExitCode::kInternal, "elements 1..3 of 2");
  expect_error([&] { read_floats(view, out, -1); }, ExitCode::kInternal, "of 2");
}

}  // namespace
}  // namespace fettle::hub
