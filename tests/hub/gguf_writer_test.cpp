// SPDX-License-Identifier: Apache-2.0
#include "hub/gguf_writer.h"

#include <gmock/gmock.h>

#include <limits>
#include <numeric>

#include "hub/gguf.h"
#include "hub/gguf_bytes.h"
#include "hub/path.h"
#include "hub/support.h"
#include "support/file_size_limit.h"

namespace fettle::hub {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

/// A tensor with the values 0, 1, 2, …
GgufTensor counting(const std::string& name, DType dtype, std::vector<int64_t> shape) {
  TensorView source;
  source.name = "source of " + name;
  source.shape = std::move(shape);
  std::vector<float> values(static_cast<size_t>(element_count(source)));
  std::iota(values.begin(), values.end(), 0.0F);
  return {name, dtype, std::move(source), 0, std::move(values)};
}

std::vector<float> written_floats(const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(element_count(view)));
  read_floats(view, values);
  return values;
}

TEST(WriteGguf, LaysTheFileOutAsTheFormatSays) {
  const TemporaryFolder folder;
  GgufMetadata metadata;
  metadata.integer("a", 7);
  metadata.number("b", 0.5);
  metadata.flag("c", true);
  metadata.text("d", "text");
  const std::vector<std::string> texts = {"x", ""};
  metadata.texts("e", texts);
  metadata.integers("f", std::vector<int32_t>{-1, 2});
  metadata.numbers("g", std::vector<float>{1.5F});
  const std::vector<GgufTensor> tensors = {counting("t", DType::kF32, {2, 3}), counting("u", DType::kF16, {1})};
  write_gguf(folder / "m.gguf", metadata, tensors, 2);

  const auto array = [](uint32_t type, uint64_t size) { return little_endian(type) + little_endian(size); };
  GgufParts parts;
  parts.entries = {gguf_entry("a", 7U),
                   gguf_entry("b", 0.5F),
                   gguf_entry("c", 7, "\1"),
                   gguf_entry("d", "text"),
                   gguf_entry("e", kArray, array(kString, 2) + gguf_string("x") + gguf_string("")),
                   gguf_entry("f", kArray, array(5, 2) + little_endian(-1) + little_endian(2)),
                   gguf_entry("g", kArray, array(kFloat32, 1) + little_endian(1.5F))};
  parts.tensors = {gguf_tensor("t", {3, 2}, 0, 0), gguf_tensor("u", {1}, 1, 32)};
  std::string expected = make_gguf(parts);
  for (int i = 0; i < 6; ++i) expected += little_endian(static_cast<float>(i));
  expected += std::string(8, '\0') + std::string(2, '\0') + std::string(30, '\0');
  EXPECT_EQ(read_file(folder / "m.gguf"), expected);
}

TEST(WriteGguf, IsReadBack) {
  const TemporaryFolder folder;
  const std::vector<DType> types = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                    DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1};
  std::vector<GgufTensor> tensors;
  for (const DType dtype : types) tensors.push_back(counting(std::string(dtype_name(dtype)), dtype, {3, 64}));
  GgufMetadata metadata;
  metadata.text("general.architecture", "llama");
  write_gguf(folder / "m.gguf", metadata, tensors, 3);
  const GgufFile file = GgufFile::open(folder / "m.gguf");
  EXPECT_EQ(std::get<std::string>(file.metadata().find("general.architecture")->second), "llama");
  ASSERT_EQ(file.tensors().size(), types.size());
  for (size_t i = 0; i < types.size(); ++i) {
    const TensorView& view = file.tensors()[i];
    EXPECT_EQ(view.dtype, types[i]);
    EXPECT_THAT(view.shape, ElementsAre(3, 64));
    // 191 is the largest value, 31 the widest block: half a step of 15 levels between 0 and 191 at most.
    EXPECT_THAT(written_floats(view), testing::Pointwise(testing::FloatNear(13), tensors[i].values)) << view.name;
  }
  EXPECT_EQ(written_floats(file.tensors()[0]), tensors[0].values);
}

TEST(WriteGguf, InterleavesTheHalvesOfEachHead) {
  const TemporaryFolder folder;
  std::vector<GgufTensor> tensors = {counting("w", DType::kF32, {12, 2}), counting("b", DType::kF32, {12})};
  for (GgufTensor& tensor : tensors) tensor.interleaved_heads = 2;
  // The values in memory stand for a mapped file's.
  std::vector<std::vector<float>> stored;
  for (GgufTensor& tensor : tensors) {
    stored.push_back(std::exchange(tensor.values, {}));
    tensor.source.bytes = std::as_bytes(std::span(stored.back()));
  }
  write_gguf(folder / "m.gguf", {}, tensors, 2);
  const GgufFile file = GgufFile::open(folder / "m.gguf");
  EXPECT_THAT(written_floats(file.tensors()[1]), ElementsAre(0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11));
  for (size_t i = 0; i < tensors.size(); ++i) {
    TensorView view = file.tensors()[i];
    view.interleaved_heads = 2;
    EXPECT_EQ(written_floats(view), stored[i]);
  }
}

TEST(WriteGguf, WritesTheSameWithAnyNumberOfThreads) {
  const TemporaryFolder folder;
  const std::vector<GgufTensor> tensors = {counting("t", DType::kQ5_1, {37, 32})};
  for (const int64_t threads : {1, 2, 5, 64}) {
    write_gguf(folder / std::to_string(threads), {}, tensors, threads);
    EXPECT_EQ(read_file(folder / std::to_string(threads)), read_file(folder / "1"));
  }
}

TEST(WriteGguf, RefusesWhatATypeCannotHold) {
  const TemporaryFolder folder;
  std::vector<GgufTensor> tensors = {counting("t", DType::kF16, {4, 32})};
  const auto refuse = [&](float value, const std::string& fragment) {
    tensors[0].values[100] = value;
    expect_error([&] { write_gguf(folder / "m.gguf", {}, tensors, 2); }, ExitCode::kData, fragment);
    EXPECT_THAT(list_folder(folder.path()), IsEmpty());
  };
  refuse(70000, "tensor 'source of t' holds 70000, which is too large for f16; write f32 or bf16");
  refuse(std::numeric_limits<float>::quiet_NaN(), "tensor 'source of t' holds nan");
  refuse(-std::numeric_limits<float>::infinity(), "tensor 'source of t' holds -inf");
  tensors[0].values[100] = 70000;
  tensors[0].dtype = DType::kBF16;
  write_gguf(folder / "m.gguf", {}, tensors, 2);
}

TEST(WriteGguf, KeepsTheOldFileWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  const std::vector<GgufTensor> tensors = {counting("t", DType::kF32, {100, 100})};
  folder.write("m.gguf", "old");
  {
    const FileSizeLimit limit;
    expect_error([&] { write_gguf(folder / "m.gguf", {}, tensors, 1); }, ExitCode::kIo, "m.gguf");
  }
  EXPECT_EQ(read_file(folder / "m.gguf"), "old");
  EXPECT_EQ(list_folder(folder.path()).size(), 1U);
}

TEST(WriteGguf, RefusesANumberThatTheFormatHasNoRoomFor) {
  GgufMetadata metadata;
  expect_error([&] { metadata.integer("k", int64_t{1} << 32); }, ExitCode::kData, "k = 4294967296 does not fit");
  expect_error([&] { metadata.integer("k", -1); }, ExitCode::kData, "k = -1 does not fit");
}

}  // namespace
}  // namespace fettle::hub
