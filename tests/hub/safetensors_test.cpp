// SPDX-License-Identifier: Apache-2.0
#include "hub/safetensors.h"

#include <gmock/gmock.h>

#include <ctime>

#include "hub/support.h"
#include "hub/tensor_source.h"

namespace fettle::hub {
namespace {

using testing::ElementsAre;

/// A file with this header and `data_size` bytes of data.
std::string make_file(std::string_view header, size_t data_size) {
  return little_endian<uint64_t>(header.size()) + std::string(header) + std::string(data_size, '\1');
}

struct SafetensorsCase {
  const char* name;
  std::string bytes;
  const char* fragment;
};

void PrintTo(const SafetensorsCase& value, std::ostream* out) {
  *out << value.name;
}

std::string repeated(std::string_view text, size_t times) {
  std::string result;
  for (size_t i = 0; i < times; ++i) result += text;
  return result;
}

class HostileSafetensors : public testing::TestWithParam<SafetensorsCase> {};

TEST_P(HostileSafetensors, IsRefusedByName) {
  const SafetensorsCase& hostile = GetParam();
  expect_error([&] { parse_safetensors(as_bytes(hostile.bytes), "m.safetensors"); }, ExitCode::kData, hostile.fragment);
  expect_error([&] { parse_safetensors(as_bytes(hostile.bytes), "m.safetensors"); }, ExitCode::kData, "m.safetensors");
}

TEST(Safetensors, ManyTensorsAreReadInSeconds) {
  std::string header = "{";
  for (int i = 0; i < 100'000; ++i) {
    header += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  }
  const std::string file = make_file(header + "}", 0);
  const std::clock_t begin = std::clock();
  EXPECT_EQ(parse_safetensors(as_bytes(file), "m.safetensors").tensors.size(), 100'000U);
  EXPECT_LT((std::clock() - begin) / CLOCKS_PER_SEC, 10) << "quadratic: it took minutes";
}

const std::vector<SafetensorsCase> kFraming = {
    {"Empty", "", "0 bytes are too few"},
    {"SevenBytes", "1234567", "7 bytes are too few"},
    {"HeaderPastTheEnd", little_endian<uint64_t>(100) + "{}", "a header of 100 bytes in a file of 10"},
    {"HeaderOf100MB", little_endian<uint64_t>(100'000'001) + "{}", "a header of 100000001 bytes"},
    {"HeaderOf2To64", little_endian<uint64_t>(UINT64_MAX) + "{}", "a header of 18446744073709551615 bytes"},
    {"EmptyHeader", make_file("", 0), "does not start with {"},
    {"Pickle", "\x80\x02}q\x01(U\x05helloworld", "not a safetensors file"},
    {"LeadingSpace", make_file(" {}", 0), "does not start with {"},
    {"ByteOrderMark", make_file("\xEF\xBB\xBF{}", 0), "does not start with {"},
    {"NotJson", make_file("{oops}", 0), "not valid JSON at byte 2"},
    {"HalfJson", make_file(R"({"a":)", 0), "not valid JSON"},
    {"TwoObjects", make_file("{}{}", 0), "not valid JSON"},
    {"InvalidUtf8", make_file("{\"\xFF\":1}", 0), "not valid JSON"},
    {"NumberOutOfRange", make_file(R"({"a":1e999})", 0), "out of range"},
    {"DeepNesting", make_file(R"({"a":)" + std::string(100, '['), 0), "nested deeper than 64"},
    {"DuplicateTensor",
     make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
               R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
               1),
     "'a' occurs twice"},
    {"DuplicateField", make_file(R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1),
     "'shape' occurs twice"},
    {"DataWithoutTensors", make_file("{}", 3), "3 bytes follow the last tensor"},
};

const std::vector<SafetensorsCase> kEntries = {
    {"MetadataNotAnObject", make_file(R"({"__metadata__":[]})", 0), "__metadata__ is not an object"},
    {"MetadataNotText", make_file(R"({"__metadata__":{"format":1}})", 0), "'format' is not a string"},
    {"EntryNotAnObject", make_file(R"({"a":3})", 0), "tensor 'a': its header entry is not an object"},
    {"NoDtype", make_file(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1), "has no dtype"},
    {"NoShape", make_file(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1), "has no shape"},
    {"NoOffsets", make_file(R"({"a":{"dtype":"U8","shape":[1]}})", 1), "has no data_offsets"},
    {"DtypeNotText", make_file(R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,1]}})", 1), "dtype is not a string"},
    {"UnknownDtype", make_file(R"({"a":{"dtype":"F12","shape":[1],"data_offsets":[0,1]}})", 1),
     "dtype 'F12' is not supported"},
    {"Float8", make_file(R"({"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}})", 1),
     "dtype 'F8_E4M3' is not supported; use the model in bf16"},
    {"ShapeNotAList", make_file(R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1), "shape is not an array"},
    {"NegativeSize", make_file(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1),
     "not a non-negative integer"},
    {"FractionalSize", make_file(R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1),
     "not a non-negative integer"},
    {"SizeAbove2To63", make_file(R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1]}})", 1),
     "not a non-negative integer"},
    {"ProductOverflows", make_file(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0),
     "the product of its shape overflows"},
    {"BytesOverflow", make_file(R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0),
     "the product of its shape overflows"},
    {"OverflowHiddenByZero",
     make_file(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", 0), "overflows"},
    {"NegativeOffset", make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})", 1),
     "not two byte positions"},
    {"OneOffset", make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1), "not two byte positions"},
    {"ThreeOffsets", make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1),
     "not two byte positions"},
    {"EndBeforeBegin", make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1),
     "bytes 1..0 end before they begin"},
    {"OutsideTheFile", make_file(R"({"X":{"dtype":"U8","shape":[10],"data_offsets":[10,20]}})", 12),
     "tensor 'X': bytes 10..20 lie outside the file, which has 12 bytes of data (incomplete download?)"},
    {"OffsetNear2To64",
     make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}})", 1),
     "lie outside the file"},
    {"TooFewBytes", make_file(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}})", 20),
     "20 bytes for F32 of shape [2, 3], which takes 24"},
    {"TooManyBytes", make_file(R"({"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,8]}})", 8),
     "8 bytes for BF16 of shape [2], which takes 4"},
    {"ScalarOfTwo", make_file(R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,2]}})", 2), "which takes 1"},
    {"Overlap",
     make_file(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
               R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
               3),
     "tensor 'b': bytes 1..3 overlap another tensor's"},
    {"SameBytesTwice",
     make_file(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
               R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
               2),
     "tensor 'b': bytes 0..2 overlap"},
    {"Hole",
     make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
               R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
               3),
     "tensor 'b': bytes 2..3 leave a hole before them"},
    {"HoleAtTheStart", make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2), "leave a hole"},
    {"BytesAtTheEnd", make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 9),
     "8 bytes follow the last tensor"},
    {"NewlineInAName", make_file(R"({"a\nb":3})", 0), "tensor 'a b'"},
    {"EndlessName", make_file("{\"" + repeated("x", 5000) + "\":3}", 0), "…': its header entry"},
};

std::string safetensors_case_name(const testing::TestParamInfo<SafetensorsCase>& information) {
  return information.param.name;
}
INSTANTIATE_TEST_SUITE_P(Framing, HostileSafetensors, testing::ValuesIn(kFraming), safetensors_case_name);
INSTANTIATE_TEST_SUITE_P(Entries, HostileSafetensors, testing::ValuesIn(kEntries), safetensors_case_name);

TEST(Safetensors, ReadsWhatTheFormatAllows) {
  // Any order of entries, scalars, empty tensors, unknown fields, trailing spaces, metadata.
  const std::string file =
      make_file(R"({"b":{"dtype":"I32","shape":[2],"data_offsets":[4,12],"note":"ignored"},)"
                R"("__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                R"("empty":{"dtype":"F16","shape":[3,0],"data_offsets":[4,4]}}   )",
                12);
  const Safetensors content = parse_safetensors(as_bytes(file), "m");
  ASSERT_EQ(content.tensors.size(), 3U);
  EXPECT_EQ(content.tensors[0].name, "a");
  EXPECT_TRUE(content.tensors[0].shape.empty());
  EXPECT_EQ(element_count(content.tensors[0]), 1);
  EXPECT_EQ(content.tensors[1].name, "empty");
  EXPECT_THAT(content.tensors[1].shape, ElementsAre(3, 0));
  EXPECT_EQ(content.tensors[2].name, "b");
  EXPECT_EQ(content.tensors[2].dtype, DType::kI32);
  EXPECT_EQ(content.tensors[2].bytes.data(), as_bytes(file).data() + file.size() - 8);
  EXPECT_EQ(content.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
}

TEST(Safetensors, ReadsAFileWithoutTensors) {
  EXPECT_TRUE(parse_safetensors(as_bytes(make_file("{}      ", 0)), "m").tensors.empty());
}

TEST(SafetensorsIndex, ReadsTheWeightMap) {
  const auto shards =
      parse_safetensors_index(R"({"metadata":{"total_size":2},"weight_map":{"a":"x.safetensors"}})", "i");
  EXPECT_EQ(shards, (std::map<std::string, std::string>{{"a", "x.safetensors"}}));
}

TEST(SafetensorsIndex, RefusesWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"[]", "a JSON object is expected"},
      {"{}", "weight_map is missing"},
      {R"({"weight_map":[]})", "weight_map is missing or not an object"},
      {R"({"weight_map":{}})", "weight_map is empty"},
      {R"({"weight_map":{"a":1}})", "tensor 'a': its shard is not a string"},
      {R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})", "'a' occurs twice"},
      {R"({"weight_map":{"a":"../x.safetensors"}})", "is not the name of a .safetensors file"},
      {R"({"weight_map":{"a":"/etc/x.safetensors"}})", "is not the name of a .safetensors file"},
      {R"({"weight_map":{"a":"sub\\x.safetensors"}})", "is not the name of a .safetensors file"},
      {R"({"weight_map":{"a":"x\u0000.safetensors"}})", "is not the name of a .safetensors file"},
      {R"({"weight_map":{"a":"passwd"}})", "is not the name of a .safetensors file"},
      {R"({"weight_map":{"a":""}})", "is not the name of a .safetensors file"},
  };
  for (const auto& [text, fragment] : cases) {
    expect_error([&text = text] { parse_safetensors_index(text, "index.json"); }, ExitCode::kData, fragment);
  }
}

class ShardedModel : public testing::Test {
 protected:
  void write_index(const std::string& weight_map) const {
    folder_.write("model.safetensors.index.json", R"({"weight_map":)" + weight_map + "}");
  }
  void write_shard(const std::string& name, const std::string& tensor) const {
    folder_.write(name, make_file("{\"" + tensor + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
  }
  void expect_refused(ExitCode code, const std::string& fragment) const {
    expect_error([this] { TensorSource::open_safetensors(folder_.path()); }, code, fragment);
  }

  TemporaryFolder folder_;
};

TEST_F(ShardedModel, IsReadAsOne) {
  write_index(R"({"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"})");
  write_shard("model-00001-of-00002.safetensors", "a");
  write_shard("model-00002-of-00002.safetensors", "b");
  const TensorSource source = TensorSource::open_safetensors(folder_.path());
  ASSERT_EQ(source.tensors().size(), 2U);
  ASSERT_NE(source.find("b"), nullptr);
  EXPECT_EQ(source.find("b")->bytes[0], std::byte{1});
  EXPECT_EQ(source.find("c"), nullptr);
}

TEST_F(ShardedModel, NamesAnAbsentShard) {
  write_index(R"({"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"})");
  write_shard("model-00001-of-00002.safetensors", "a");
  expect_refused(ExitCode::kNoInput, "the shard 'model-00002-of-00002.safetensors' is missing");
}

TEST_F(ShardedModel, NamesATruncatedShard) {
  write_index(R"({"a":"model-00001-of-00001.safetensors"})");
  folder_.write("model-00001-of-00001.safetensors",
                make_file(R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}})", 5));
  expect_refused(ExitCode::kData, "model-00001-of-00001.safetensors: tensor 'a': bytes 0..9 lie outside the file");
}

TEST_F(ShardedModel, NamesATensorThatTheShardLacks) {
  write_index(R"({"a":"x.safetensors","b":"x.safetensors"})");
  write_shard("x.safetensors", "a");
  expect_refused(ExitCode::kData, "tensor 'b' is missing, although model.safetensors.index.json lists it");
}

TEST_F(ShardedModel, NamesATensorThatTheIndexLacks) {
  write_index(R"({"a":"x.safetensors"})");
  write_shard("x.safetensors", "stowaway");
  expect_refused(ExitCode::kData, "tensor 'stowaway' is not listed");
}

TEST_F(ShardedModel, SaysWhatIsMissingFromAFolderWithoutWeights) {
  expect_refused(ExitCode::kNoInput, "neither model.safetensors nor model.safetensors.index.json is there");
  folder_.write("pytorch_model.bin", "pickle");
  expect_refused(ExitCode::kNoInput, "save the model once with transformers");
}

TEST(TensorSource, NamesAnAbsentFile) {
  expect_error([] { TensorSource::open_safetensors("absent/model.safetensors"); }, ExitCode::kNoInput,
               "absent/model.safetensors");
}

TEST(TensorSource, StaysMappedWhileACopyLives) {
  const TemporaryFolder folder;
  folder.write("m.safetensors", make_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
  const auto copy = [&] { return TensorSource::open_safetensors(folder / "m.safetensors"); }();
  std::filesystem::remove(folder / "m.safetensors");
  EXPECT_EQ(copy.tensors()[0].bytes[0], std::byte{1});
}

}  // namespace
}  // namespace fettle::hub
