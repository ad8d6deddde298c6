// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "base/hash.h"
#include "hub/safetensors.h"
#include "hub/support.h"
#include "hub/tensor_source.h"
#include "support/file_size_limit.h"

namespace fettle::hub {
namespace {

namespace fs = std::filesystem;
using testing::UnorderedElementsAre;

const std::map<std::string, std::string> kMetadata = {{"format", "pt"}};

/// `size` bytes that differ from one another, and a view of them as U8.
class Bytes {
 public:
  explicit Bytes(size_t size, unsigned char first = 0) : bytes_(size) {
    std::iota(bytes_.begin(), bytes_.end(), first);
  }
  [[nodiscard]] TensorView view(const std::string& name) const { return view(name, DType::kU8, {std::ssize(bytes_)}); }
  [[nodiscard]] TensorView view(const std::string& name, DType dtype, std::vector<int64_t> shape) const {
    return {.name = name, .dtype = dtype, .shape = std::move(shape), .bytes = std::as_bytes(std::span(bytes_))};
  }

 private:
  std::vector<unsigned char> bytes_;
};

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  return names;
}

TEST(WriteSafetensors, LaysTheFileOutAsTheReferenceDoes) {
  const TemporaryFolder folder;
  const Bytes four(4);
  const Bytes two(2, 100);
  const std::vector<TensorView> tensors = {four.view("z", DType::kF32, {1}), two.view("a", DType::kBF16, {1, 1}),
                                           four.view("b", DType::kF32, {})};
  const std::string hash = write_safetensors(folder / "m.safetensors", tensors, kMetadata);
  Blake3 whole;
  whole.update(MappedFile::open(folder / "m.safetensors")->bytes());
  EXPECT_EQ(hash, whole.finish());
  // Larger types first, then by name; the header is padded with spaces to 8 bytes.
  std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("z":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"a":{"dtype":"BF16","shape":[1,1],"data_offsets":[8,10]}})";
  header.append((8 - header.size() % 8) % 8, ' ');
  EXPECT_EQ(read_file(folder / "m.safetensors"),
            little_endian<uint64_t>(header.size()) + header + std::string("\0\1\2\3\0\1\2\3", 8) + "\x64\x65");
}

TEST(WriteSafetensors, ReadsBackEveryType) {
  const TemporaryFolder folder;
  const Bytes bytes(16);
  std::vector<TensorView> tensors;
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI64, DType::kI32, DType::kI16,
                            DType::kI8, DType::kU8, DType::kBool}) {
    tensors.push_back(bytes.view(std::string(dtype_name(dtype)), dtype, {16 / block_layout(dtype).bytes}));
  }
  tensors.push_back({.name = "empty", .dtype = DType::kF32, .shape = {0, 4}, .bytes = {}});
  write_safetensors(folder / "m.safetensors", tensors, {});
  const TensorSource source = TensorSource::open_safetensors(folder / "m.safetensors");
  ASSERT_EQ(source.tensors().size(), tensors.size());
  for (const TensorView& written : tensors) {
    const TensorView* read = source.find(written.name);
    ASSERT_NE(read, nullptr) << written.name;
    EXPECT_EQ(read->dtype, written.dtype);
    EXPECT_EQ(read->shape, written.shape);
    EXPECT_TRUE(std::equal(read->bytes.begin(), read->bytes.end(), written.bytes.begin(), written.bytes.end()));
  }
}

TEST(WriteSafetensors, RefusesTensorsThatNoReaderWouldAccept) {
  const TemporaryFolder folder;
  const Bytes bytes(34);
  const auto refuse = [&](std::vector<TensorView> tensors, const std::string& fragment) {
    expect_error([&] { write_safetensors(folder / "m.safetensors", tensors, {}); }, ExitCode::kInternal, fragment);
    EXPECT_TRUE(names_in(folder.path()).empty());
  };
  refuse({bytes.view("a"), bytes.view("a")}, "two tensors are named 'a'");
  refuse({bytes.view("a", DType::kU8, {33})}, "cannot be written");
  refuse({bytes.view("__metadata__")}, "cannot be written");
  refuse({bytes.view("a", DType::kQ8_0, {32})}, "cannot be written");
}

TEST(WriteSafetensors, KeepsTheOldFileWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  const Bytes small(16);
  const Bytes large(100'000);
  const std::vector<TensorView> before = {small.view("a")};
  write_safetensors(folder / "m.safetensors", before, kMetadata);
  const std::string old = read_file(folder / "m.safetensors");
  {
    const FileSizeLimit limit;
    const std::vector<TensorView> after = {large.view("a")};
    expect_error([&] { write_safetensors(folder / "m.safetensors", after, kMetadata); }, ExitCode::kIo,
                 "m.safetensors: File too large");
  }
  EXPECT_EQ(read_file(folder / "m.safetensors"), old);
  EXPECT_THAT(names_in(folder.path()), UnorderedElementsAre("m.safetensors"));
}

TEST(WriteSafetensors, NamesAFolderThatMayNotBeWritten) {
  const TemporaryFolder folder;
  const Bytes bytes(1);
  const std::vector<TensorView> tensors = {bytes.view("a")};
  ::chmod(folder.path().c_str(), 0555);
  const bool root = ::geteuid() == 0;  // whom modes do not bind
  if (root) {
    ASSERT_EQ(::seteuid(65534), 0);
  }
  expect_error([&] { write_safetensors(folder / "m.safetensors", tensors, {}); }, ExitCode::kPermission,
               "m.safetensors: Permission denied");
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
  ::chmod(folder.path().c_str(), 0755);
  expect_error([&] { write_safetensors(folder / "absent/m.safetensors", tensors, {}); }, ExitCode::kNoInput, "absent");
}

TEST(WriteModel, SplitsAsTransformersDoes) {
  const TemporaryFolder folder;
  const Bytes six(6);
  const Bytes two(2);
  // The example of huggingface_hub's split: 6, 6, 2, 6, 2, 2 at a limit of 10.
  const std::vector<TensorView> tensors = {six.view("a"), six.view("b"), two.view("c"),
                                           six.view("d"), two.view("e"), two.view("f")};
  write_model_safetensors(folder.path(), tensors, 10);
  EXPECT_THAT(names_in(folder.path()),
              UnorderedElementsAre("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                   "model-00003-of-00003.safetensors", "model.safetensors.index.json"));
  EXPECT_EQ(nlohmann::json::parse(read_file(folder / "model.safetensors.index.json")), nlohmann::json::parse(R"({
    "metadata": {"total_parameters": 24, "total_size": 24},
    "weight_map": {"a": "model-00001-of-00003.safetensors", "b": "model-00002-of-00003.safetensors",
                   "c": "model-00002-of-00003.safetensors", "d": "model-00003-of-00003.safetensors",
                   "e": "model-00003-of-00003.safetensors", "f": "model-00003-of-00003.safetensors"}})"));
  const TensorSource source = TensorSource::open_safetensors(folder.path());
  EXPECT_EQ(source.tensors().size(), 6U);
}

TEST(WriteModel, GivesATensorAboveTheLimitItsOwnShard) {
  const TemporaryFolder folder;
  const Bytes large(50);
  const Bytes small(4);
  const std::vector<TensorView> tensors = {small.view("a"), large.view("big"), small.view("b")};
  write_model_safetensors(folder.path(), tensors, 10);
  const auto index = nlohmann::json::parse(read_file(folder / "model.safetensors.index.json"));
  EXPECT_EQ(index["weight_map"]["big"], "model-00001-of-00002.safetensors");
  EXPECT_EQ(index["weight_map"]["a"], "model-00002-of-00002.safetensors");
  EXPECT_EQ(index["weight_map"]["b"], "model-00002-of-00002.safetensors");
}

TEST(WriteModel, RemovesTheFilesOfAnEarlierSave) {
  const TemporaryFolder folder;
  const Bytes six(6);
  const std::vector<TensorView> two = {six.view("a"), six.view("b")};
  const std::vector<TensorView> one = {six.view("a")};
  folder.write("model-of-mine.safetensors", "kept");
  write_model_safetensors(folder.path(), two, 10);
  write_model_safetensors(folder.path(), one, 10);
  EXPECT_THAT(names_in(folder.path()), UnorderedElementsAre("model.safetensors", "model-of-mine.safetensors"));
  write_model_safetensors(folder.path(), two, 10);
  EXPECT_EQ(TensorSource::open_safetensors(folder.path()).tensors().size(), 2U);
  EXPECT_FALSE(fs::exists(folder / "model.safetensors"));
}

}  // namespace
}  // namespace fettle::hub
