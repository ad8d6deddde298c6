// SPDX-License-Identifier: Apache-2.0
#include "hub/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/utf8.h"
#include "hub/json.h"

namespace fettle::hub {
namespace {

using nlohmann::json;

constexpr uint64_t kMaximumHeader = 100'000'000;  // the reference's limit
constexpr size_t kLengthBytes = 8;
constexpr std::array kPlainTypes = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI64,
                                    DType::kI32, DType::kI16, DType::kI8,  DType::kU8,   DType::kBool};

std::optional<DType> find_dtype(std::string_view name) {
  const auto* found =
      std::find_if(kPlainTypes.begin(), kPlainTypes.end(), [name](DType dtype) { return dtype_name(dtype) == name; });
  return found == kPlainTypes.end() ? std::nullopt : std::optional(*found);
}

/// A tensor's header entry, before its bytes are known to exist.
struct Entry {
  TensorView view;
  uint64_t begin;
  uint64_t end;
};

/// Reads one file; the members carry what every message needs.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::string_view name) : bytes_(bytes), name_(name) {}

  Safetensors read() {
    const json header = read_header();
    Safetensors result;
    std::vector<Entry> entries;
    for (const auto& [key, value] : header.items()) {
      if (key == "__metadata__") {
        result.metadata = read_metadata(value);
      } else {
        entries.push_back(read_entry(key, value));
      }
    }
    place(entries);
    result.tensors.reserve(entries.size());
    for (Entry& entry : entries) result.tensors.push_back(std::move(entry.view));
    return result;
  }

 private:
  [[noreturn]] void fail(const std::string& what, const std::string& hint = kWrongContentHint) const {
    throw Error(ExitCode::kData, fmt::format("{}: {}", name_, what), hint);
  }

  [[noreturn]] void fail_tensor(std::string_view tensor, const std::string& what,
                                const std::string& hint = kWrongContentHint) const {
    fail(fmt::format("tensor {}: {}", quote(tensor), what), hint);
  }

  json read_header() {
    if (bytes_.size() < kLengthBytes) {
      fail(fmt::format("{} bytes are too few for a safetensors file (incomplete download?)", bytes_.size()));
    }
    uint64_t length = 0;
    std::memcpy(&length, bytes_.data(), sizeof(length));
    if (length > kMaximumHeader) {
      fail(fmt::format("a header of {} bytes; the format allows {}", length, kMaximumHeader),
           "this is probably not a safetensors file");
    }
    if (length > bytes_.size() - kLengthBytes) {
      fail(fmt::format("a header of {} bytes in a file of {} (incomplete download?)", length, bytes_.size()));
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + kLengthBytes, length);
    if (!text.starts_with('{')) fail("the header does not start with {", "this is probably not a safetensors file");
    data_ = bytes_.subspan(kLengthBytes + length);
    return parse_json_object(text, fmt::format("{}: header", name_));
  }

  std::map<std::string, std::string> read_metadata(const json& value) const {
    if (!value.is_object()) fail("__metadata__ is not an object");
    std::map<std::string, std::string> metadata;
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) fail(fmt::format("__metadata__: the value of {} is not a string", quote(key)));
      metadata.emplace(key, text.get<std::string>());
    }
    return metadata;
  }

  Entry read_entry(const std::string& tensor, const json& value) const {
    if (!value.is_object()) fail_tensor(tensor, "its header entry is not an object");
    for (const char* key : {"dtype", "shape", "data_offsets"}) {
      if (!value.contains(key)) fail_tensor(tensor, fmt::format("its header entry has no {}", key));
    }
    const json& dtype = value["dtype"];
    if (!dtype.is_string()) fail_tensor(tensor, "dtype is not a string");
    const auto known = find_dtype(dtype.get_ref<const std::string&>());
    if (!known) {
      fail_tensor(tensor, fmt::format("dtype {} is not supported", quote(dtype.get_ref<const std::string&>())),
                  "use the model in bf16, f16 or f32");
    }
    Entry entry{{.name = tensor, .dtype = *known, .shape = read_shape(tensor, value["shape"]), .bytes = {}}, 0, 0};
    const json& offsets = value["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      fail_tensor(tensor, "data_offsets are not two byte positions");
    }
    entry.begin = offsets[0].get<uint64_t>();
    entry.end = offsets[1].get<uint64_t>();
    check_size(entry);
    return entry;
  }

  std::vector<int64_t> read_shape(const std::string& tensor, const json& value) const {
    if (!value.is_array()) fail_tensor(tensor, "shape is not an array");
    std::vector<int64_t> shape;
    for (const json& size : value) {
      if (!size.is_number_unsigned() || size.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
        fail_tensor(tensor, "a size in its shape is not a non-negative integer");
      }
      shape.push_back(size.get<int64_t>());
    }
    return shape;
  }

  void check_size(const Entry& entry) const {
    const std::string& tensor = entry.view.name;
    if (entry.end < entry.begin) {
      fail_tensor(tensor, fmt::format("bytes {}..{} end before they begin", entry.begin, entry.end));
    }
    if (entry.end > data_.size()) {
      fail_tensor(tensor,
                  fmt::format("bytes {}..{} lie outside the file, which has {} bytes of data (incomplete download?)",
                              entry.begin, entry.end, data_.size()));
    }
    int64_t size = block_layout(entry.view.dtype).bytes;
    for (const int64_t dimension : entry.view.shape) {
      if (__builtin_mul_overflow(size, dimension, &size)) fail_tensor(tensor, "the product of its shape overflows");
    }
    if (entry.end - entry.begin != static_cast<uint64_t>(size)) {
      fail_tensor(tensor, fmt::format("{} bytes for {} of shape [{}], which takes {}", entry.end - entry.begin,
                                      dtype_name(entry.view.dtype), fmt::join(entry.view.shape, ", "), size));
    }
  }

  /// Sorts by offset, as the reference does, and demands that the tensors follow one another and fill the buffer.
  void place(std::vector<Entry>& entries) const {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::tie(a.begin, a.end, a.view.name) < std::tie(b.begin, b.end, b.view.name);
    });
    uint64_t position = 0;
    for (Entry& entry : entries) {
      if (entry.begin != position) {
        fail_tensor(entry.view.name,
                    fmt::format("bytes {}..{} {}", entry.begin, entry.end,
                                entry.begin < position ? "overlap another tensor's" : "leave a hole before them"));
      }
      position = entry.end;
      entry.view.bytes = data_.subspan(entry.begin, entry.end - entry.begin);
    }
    if (position != data_.size()) {
      fail(fmt::format("{} bytes follow the last tensor", data_.size() - position),
           "the file was damaged or appended to");
    }
  }

  std::span<const std::byte> bytes_;
  std::span<const std::byte> data_;
  std::string_view name_;
};

}  // namespace

Safetensors parse_safetensors(std::span<const std::byte> bytes, std::string_view name) {
  return Reader(bytes, name).read();
}

std::map<std::string, std::string> parse_safetensors_index(std::string_view text, std::string_view name) {
  const json index = parse_json_object(text, name);
  const auto found = index.find("weight_map");
  if (found == index.end() || !found->is_object()) {
    throw Error(ExitCode::kData, fmt::format("{}: weight_map is missing or not an object", name), kWrongContentHint);
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : found->items()) {
    if (!shard.is_string()) {
      throw Error(ExitCode::kData, fmt::format("{}: tensor {}: its shard is not a string", name, quote(tensor)),
                  kWrongContentHint);
    }
    const auto& file = shard.get_ref<const std::string&>();
    if (!file.ends_with(".safetensors") || file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      throw Error(ExitCode::kData,
                  fmt::format("{}: tensor {}: the shard {} is not the name of a .safetensors file", name, quote(tensor),
                              quote(file)),
                  kWrongContentHint);
    }
    shards.emplace(tensor, file);
  }
  if (shards.empty()) throw Error(ExitCode::kData, fmt::format("{}: weight_map is empty", name), kWrongContentHint);
  return shards;
}

}  // namespace fettle::hub
