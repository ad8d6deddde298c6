// SPDX-License-Identifier: Apache-2.0
#include "hub/gguf.h"

#include <gmock/gmock.h>

#include "hub/gguf_bytes.h"
#include "hub/support.h"
#include "hub/tensor_source.h"

namespace fettle::hub {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ8 = 8;
constexpr uint64_t kMany = uint64_t{1} << 60;

struct GgufCase {
  const char* name;
  std::string bytes;
  const char* fragment;
};

void PrintTo(const GgufCase& value, std::ostream* out) {
  *out << value.name;
}

class HostileGguf : public testing::TestWithParam<GgufCase> {};

TEST_P(HostileGguf, IsRefusedByName) {
  const GgufCase& hostile = GetParam();
  expect_error([&] { GgufFile::parse(as_bytes(hostile.bytes), "m.gguf"); }, ExitCode::kData, hostile.fragment);
  expect_error([&] { GgufFile::parse(as_bytes(hostile.bytes), "m.gguf"); }, ExitCode::kData, "m.gguf: ");
}

std::string counts(uint64_t tensors, uint64_t values) {
  return "GGUF" + little_endian<uint32_t>(3) + little_endian(tensors) + little_endian(values);
}

std::string with_entry(const std::string& entry) {
  return make_gguf({.entries = {entry}, .tensors = {}});
}

std::string with_tensor(const std::string& tensor, size_t data_size) {
  return make_gguf({.entries = {}, .tensors = {tensor}, .data_size = data_size});
}

const std::vector<GgufCase> kPreambleCases = {
    {"Empty", "", "the magic number: 4 bytes at 0 lie outside the file of 0 bytes"},
    {"NotGguf", "PK\3\4 and more", "not a GGUF file"},
    {"Version1", make_gguf({.entries = {}, .tensors = {}, .version = 1}), "GGUF version 1; 2 and 3 are supported"},
    {"Version4", make_gguf({.entries = {}, .tensors = {}, .version = 4}), "GGUF version 4"},
    {"BigEndian", make_gguf({.entries = {}, .tensors = {}, .version = 0x03000000}), "a big-endian GGUF file"},
    {"NoCounts", "GGUF" + little_endian<uint32_t>(3), "the tensor count"},
    {"ManyTensors", counts(kMany, 0), "1152921504606846976 tensors and 0 metadata values do not fit"},
    {"ManyValues", counts(0, kMany), "do not fit in 0 bytes"},
    {"MissingTensor", counts(1, 0) + std::string(24, '\0'), "lie outside the file"},
};

const std::vector<GgufCase> kMetadataCases = {
    {"EndlessKey", counts(0, 1) + little_endian<uint64_t>(65536) + std::string(65540, 'k'),
     "a metadata key: a string of 65536 bytes, at most 65535"},
    {"KeyPastTheEnd", counts(0, 1) + little_endian<uint64_t>(60000) + std::string(20, 'k'), "lie outside the file"},
    {"StringPastTheEnd", with_entry(gguf_entry("k", kString, little_endian(kMany))), "metadata 'k'"},
    {"StringOf2To64", with_entry(gguf_entry("k", kString, little_endian(UINT64_MAX))), "lie outside the file"},
    {"UnknownValueType", with_entry(gguf_entry("k", 13, "")), "metadata 'k': unknown value type 13"},
    {"TruncatedValue", with_entry(gguf_entry("k", 10, "1234")), "metadata 'k': 8 bytes"},
    {"KeyTwice", make_gguf({.entries = {gguf_entry("k", 1U), gguf_entry("k", 2U)}, .tensors = {}}),
     "metadata 'k' occurs twice"},
    {"HugeArray", with_entry(gguf_entry("k", kArray, little_endian(kUint32) + little_endian(kMany))),
     "an array of 1152921504606846976 elements lies outside the file"},
    {"HugeStringArray", with_entry(gguf_entry("k", kArray, little_endian(kString) + little_endian(kMany))),
     "lie outside the file"},
    {"ArrayOfArrays", with_entry(gguf_entry("k", kArray, little_endian(kArray) + little_endian<uint64_t>(1))),
     "metadata 'k': an array of type 9"},
    {"AlignmentZero", with_entry(gguf_entry("general.alignment", 0U)), "general.alignment is not a power of two"},
    {"AlignmentSix", with_entry(gguf_entry("general.alignment", 6U)), "general.alignment is not a power of two"},
    {"AlignmentHuge", with_entry(gguf_entry("general.alignment", 1U << 31)), "general.alignment"},
    {"AlignmentText", with_entry(gguf_entry("general.alignment", "32")), "general.alignment"},
};

const std::vector<GgufCase> kTensorCases = {
    {"LongName", with_tensor(gguf_tensor(std::string(65, 'n'), {1}, kF32, 0), 4), "a string of 65 bytes, at most 64"},
    {"NameTwice",
     make_gguf({.entries = {},
                .tensors = {gguf_tensor("a", {1}, kF32, 0), gguf_tensor("a", {1}, kF32, 32)},
                .data_size = 64}),
     "tensor 'a' occurs twice"},
    {"FiveDimensions", with_tensor(gguf_tensor("a", {1, 1, 1, 1, 1}, kF32, 0), 4), "5 dimensions, at most 4"},
    {"DimensionsOverflow", with_tensor(gguf_tensor("a", {1U << 31, 1U << 31, 4}, kF32, 0), 4), "overflows"},
    {"NegativeDimension", with_tensor(gguf_tensor("a", {UINT64_MAX}, kF32, 0), 4), "negative or overflows"},
    {"BytesOverflow", with_tensor(gguf_tensor("a", {uint64_t{1} << 62}, kF32, 0), 4), "its shape overflows"},
    {"UnknownType", with_tensor(gguf_tensor("a", {1}, 99, 0), 4), "tensor 'a': unknown type 99"},
    {"RemovedType", with_tensor(gguf_tensor("a", {32}, 4, 0), 40), "unknown type 4"},
    {"Q4K", with_tensor(gguf_tensor("a", {256}, 12, 0), 144), "type q4_k is not supported; q4_k: requantise to q8_0"},
    {"Q5_0CutOff", with_tensor(gguf_tensor("a", {32}, 6, 0), 21), "22 bytes at 0 lie outside the file"},
    {"Q5_1CutOff", with_tensor(gguf_tensor("a", {32}, 7, 0), 23), "24 bytes at 0 lie outside the file"},
    {"IntegerType", with_tensor(gguf_tensor("a", {1}, 26, 0), 4), "type i32 is not supported"},
    {"HalfABlock", with_tensor(gguf_tensor("a", {16, 2}, kQ8, 0), 34), "rows of 16 are not whole blocks of 32"},
    {"Misaligned", with_tensor(gguf_tensor("a", {1}, kF32, 4), 8), "offset 4 is not a multiple of 32"},
    {"OffsetPastTheEnd", with_tensor(gguf_tensor("a", {1}, kF32, 64), 32), "4 bytes at 64 lie outside the file"},
    {"OffsetNear2To64", with_tensor(gguf_tensor("a", {1}, kF32, UINT64_MAX - 31), 32), "lie outside the file"},
    {"DataCutOff", with_tensor(gguf_tensor("a", {32, 2}, kQ8, 0), 67),
     "68 bytes at 0 lie outside the file, which has 67 bytes of data (incomplete download?)"},
    {"Overlap",
     make_gguf({.entries = {},
                .tensors = {gguf_tensor("a", {16}, kF32, 0), gguf_tensor("b", {8}, kF32, 32)},
                .data_size = 64}),
     "tensor 'b': overlaps tensor 'a'"},
};

std::string gguf_case_name(const testing::TestParamInfo<GgufCase>& information) {
  return information.param.name;
}
INSTANTIATE_TEST_SUITE_P(Preambles, HostileGguf, testing::ValuesIn(kPreambleCases), gguf_case_name);
INSTANTIATE_TEST_SUITE_P(Metadata, HostileGguf, testing::ValuesIn(kMetadataCases), gguf_case_name);
INSTANTIATE_TEST_SUITE_P(Tensors, HostileGguf, testing::ValuesIn(kTensorCases), gguf_case_name);

TEST(Gguf, ReadsEveryValueType) {
  const std::string file = make_gguf(
      {.entries = {gguf_entry("u8", 0, "\xFF"), gguf_entry("i8", 1, "\xFF"),
                   gguf_entry("u16", 2, little_endian<uint16_t>(65535)),
                   gguf_entry("i16", 3, little_endian<int16_t>(-2)), gguf_entry("i32", 5, little_endian<int32_t>(-3)),
                   gguf_entry("f32", 1e-5F), gguf_entry("bool", 7, "\1"), gguf_entry("text", "t"),
                   gguf_entry("u64", 10, little_endian(kMany)), gguf_entry("i64", 11, little_endian<int64_t>(-4)),
                   gguf_entry("f64", 12, little_endian(0.1)),
                   gguf_entry(
                       "texts", kArray,
                       little_endian(kString) + little_endian<uint64_t>(2) + gguf_string("a") + gguf_string("b"))},
       .tensors = {},
       .version = 2});
  const GgufFile gguf = GgufFile::parse(as_bytes(file), "m");
  const auto at = [&](const char* key) { return gguf.metadata().find(key)->second; };
  EXPECT_EQ(std::get<uint64_t>(at("u8")), 255U);
  EXPECT_EQ(std::get<int64_t>(at("i8")), -1);
  EXPECT_EQ(std::get<uint64_t>(at("u16")), 65535U);
  EXPECT_EQ(std::get<int64_t>(at("i16")), -2);
  EXPECT_EQ(std::get<int64_t>(at("i32")), -3);
  EXPECT_EQ(std::get<double>(at("f32")), 1e-5);
  EXPECT_TRUE(std::get<bool>(at("bool")));
  EXPECT_EQ(std::get<std::string>(at("text")), "t");
  EXPECT_EQ(std::get<uint64_t>(at("u64")), kMany);
  EXPECT_EQ(std::get<int64_t>(at("i64")), -4);
  EXPECT_EQ(std::get<double>(at("f64")), 0.1);
  EXPECT_EQ(std::get<GgufArray>(at("texts")).size, 2U);
}

TEST(Gguf, ReversesDimensionsAndHonoursAlignment) {
  const std::string entries = gguf_entry("general.alignment", 64U);
  std::string file = make_gguf({.entries = {entries}, .tensors = {gguf_tensor("a", {3, 2}, kF32, 0)}});
  file.resize((file.size() + 63) / 64 * 64);
  file += std::string(24, '\7');
  const GgufFile gguf = GgufFile::parse(as_bytes(file), "m");
  EXPECT_THAT(gguf.tensors()[0].shape, ElementsAre(2, 3));
  EXPECT_EQ(gguf.tensors()[0].bytes.size(), 24U);
  EXPECT_EQ(gguf.tensors()[0].bytes[0], std::byte{7});
}

/// The files of tests/golden/make_gguf.py: written by the gguf package, values by transformers.
class GoldenGguf : public testing::TestWithParam<const char*> {};

TEST_P(GoldenGguf, HasTheNamesShapesAndValuesOfTransformers) {
  const fs::path folder = fs::path(FETTLE_SOURCE_DIR) / "tests/data/gguf";
  const TensorSource read = TensorSource::open_gguf(GgufFile::open(folder / (std::string(GetParam()) + ".gguf")));
  const TensorSource expected = TensorSource::open_safetensors(folder / (std::string(GetParam()) + ".safetensors"));
  EXPECT_EQ(read.tensors().size(), expected.tensors().size());
  for (const TensorView& truth : expected.tensors()) {
    const TensorView* view = read.find(truth.name);
    ASSERT_NE(view, nullptr) << truth.name;
    EXPECT_EQ(view->shape, truth.shape) << truth.name;
    std::vector<float> values(static_cast<size_t>(element_count(*view)));
    read_floats(*view, values);
    const auto bytes = std::as_bytes(std::span(values));
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), truth.bytes.begin(), truth.bytes.end())) << truth.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenGguf, testing::Values("llama", "qwen2", "qwen3"),
                         [](const auto& information) { return std::string(information.param); });

}  // namespace
}  // namespace fettle::hub
