// SPDX-License-Identifier: Apache-2.0
#include "hub/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "hub/gguf_format.h"
#include "hub/json.h"

namespace fettle::hub {
namespace {

constexpr uint64_t kMaximumKey = 65535;
constexpr uint64_t kMaximumTensorName = 64;
constexpr uint64_t kMaximumAlignment = uint64_t{1} << 20;

using ValueType = GgufValueType;

/// Bytes of a fixed-size value; 0 for strings, arrays and unknown types.
uint64_t fixed_size(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kBool:
      return 1;
    case ValueType::kUint16:
    case ValueType::kInt16:
      return 2;
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kFloat32:
      return 4;
    case ValueType::kUint64:
    case ValueType::kInt64:
    case ValueType::kFloat64:
      return 8;
    default:
      return 0;
  }
}

/// Reads forward through the bytes; refuses to step past their end.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, std::string_view name) : bytes_(bytes), name_(name) {}

  [[noreturn]] void fail(const std::string& what, const std::string& hint = kWrongContentHint) const {
    throw Error(ExitCode::kData, fmt::format("{}: {}", name_, what), hint);
  }

  [[nodiscard]] uint64_t position() const { return position_; }
  [[nodiscard]] uint64_t left() const { return bytes_.size() - position_; }

  template <typename T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }

  std::string_view read_string(uint64_t longest, std::string_view what) {
    const auto length = read<uint64_t>(what);
    if (length > longest) fail(fmt::format("{}: a string of {} bytes, at most {} are allowed", what, length, longest));
    return {reinterpret_cast<const char*>(take(length, what)), length};
  }

  void skip(uint64_t count, std::string_view what) { take(count, what); }

 private:
  const std::byte* take(uint64_t count, std::string_view what) {
    if (count > left()) {
      fail(fmt::format("{}: {} bytes at {} lie outside the file of {} bytes (incomplete download?)", what, count,
                       position_, bytes_.size()));
    }
    return bytes_.data() + std::exchange(position_, position_ + count);
  }

  std::span<const std::byte> bytes_;
  std::string_view name_;
  uint64_t position_ = 0;
};

GgufArray read_array(Cursor& cursor, std::string_view what) {
  const auto type = cursor.read<uint32_t>(what);
  const auto size = cursor.read<uint64_t>(what);
  const uint64_t element = fixed_size(static_cast<ValueType>(type));
  if (static_cast<ValueType>(type) == ValueType::kString) {
    for (uint64_t i = 0; i < size; ++i) cursor.read_string(UINT64_MAX, what);
  } else if (element == 0) {
    cursor.fail(fmt::format("{}: an array of type {}", what, type));
  } else if (size > cursor.left() / element) {
    cursor.fail(fmt::format("{}: an array of {} elements lies outside the file (incomplete download?)", what, size));
  } else {
    cursor.skip(size * element, what);
  }
  return {type, size};
}

GgufValue read_value(Cursor& cursor, std::string_view what) {
  const auto type = cursor.read<uint32_t>(what);
  switch (static_cast<ValueType>(type)) {
    case ValueType::kUint8:
      return uint64_t{cursor.read<uint8_t>(what)};
    case ValueType::kInt8:
      return int64_t{cursor.read<int8_t>(what)};
    case ValueType::kUint16:
      return uint64_t{cursor.read<uint16_t>(what)};
    case ValueType::kInt16:
      return int64_t{cursor.read<int16_t>(what)};
    case ValueType::kUint32:
      return uint64_t{cursor.read<uint32_t>(what)};
    case ValueType::kInt32:
      return int64_t{cursor.read<int32_t>(what)};
    case ValueType::kFloat32: {
      // The shortest decimal that names the float: 1e-05, as the model's author wrote it, not 9.999999747378752e-06.
      const float value = cursor.read<float>(what);
      return std::strtod(fmt::format("{}", value).c_str(), nullptr);
    }
    case ValueType::kBool:
      return cursor.read<uint8_t>(what) != 0;
    case ValueType::kString:
      return std::string(cursor.read_string(UINT64_MAX, what));
    case ValueType::kArray:
      return read_array(cursor, what);
    case ValueType::kUint64:
      return cursor.read<uint64_t>(what);
    case ValueType::kInt64:
      return cursor.read<int64_t>(what);
    case ValueType::kFloat64:
      return cursor.read<double>(what);
  }
  cursor.fail(fmt::format("{}: unknown value type {}", what, type));
}

struct Counts {
  uint64_t tensors;
  uint64_t values;
};

Counts read_preamble(Cursor& cursor) {
  if (cursor.read<uint32_t>("the magic number") != kGgufMagic) cursor.fail("not a GGUF file");
  const auto version = cursor.read<uint32_t>("the version");
  if (version == __builtin_bswap32(2) || version == __builtin_bswap32(3)) {
    cursor.fail("a big-endian GGUF file", "convert the model again on this machine");
  }
  if (version != 2 && version != 3) {
    cursor.fail(fmt::format("GGUF version {}; 2 and 3 are supported", version), "convert the model again");
  }
  const auto tensors = cursor.read<uint64_t>("the tensor count");
  const auto values = cursor.read<uint64_t>("the metadata count");
  // The smallest entries there can be: a tensor's takes 24 bytes and a name, a value's 13.
  if (tensors > cursor.left() / 24 || values > cursor.left() / 13) {
    cursor.fail(fmt::format("{} tensors and {} metadata values do not fit in {} bytes (incomplete download?)", tensors,
                            values, cursor.left()));
  }
  return {tensors, values};
}

DType read_dtype(Cursor& cursor, const std::string& what) {
  const auto id = cursor.read<uint32_t>(what);
  const GgufTensorType* type = find_gguf_type(id);
  if (type == nullptr) cursor.fail(fmt::format("{}: unknown type {}", what, id));
  if (!type->dtype) {
    cursor.fail(
        fmt::format("{}: type {} is not supported", what, type->name),
        fmt::format("{}: requantise to q8_0 (llama-quantize --allow-requantize model.gguf out.gguf Q8_0), or use "
                    "f32, f16, bf16, q4_0, q4_1, q5_0 or q5_1",
                    type->name));
  }
  return *type->dtype;
}

struct Placed {
  TensorView view;
  uint64_t offset;  // from the start of the data
  uint64_t size;
};

Placed read_tensor_info(Cursor& cursor) {
  const std::string name(cursor.read_string(kMaximumTensorName, "a tensor's name"));
  const std::string what = fmt::format("tensor {}", quote(name));
  const auto dimensions = cursor.read<uint32_t>(what);
  if (dimensions > kGgufMaximumDimensions) {
    cursor.fail(fmt::format("{}: {} dimensions, at most {} are allowed", what, dimensions, kGgufMaximumDimensions));
  }
  Placed placed{{.name = name, .dtype = {}, .shape = {}, .bytes = {}}, 0, 0};
  int64_t count = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    const auto size = cursor.read<int64_t>(what);
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) {
      cursor.fail(fmt::format("{}: its shape is negative or overflows", what));
    }
    placed.view.shape.insert(placed.view.shape.begin(), size);
  }
  placed.view.dtype = read_dtype(cursor, what);
  placed.offset = cursor.read<uint64_t>(what);
  const BlockLayout layout = block_layout(placed.view.dtype);
  const int64_t row = placed.view.shape.empty() ? 1 : placed.view.shape.back();
  int64_t bytes = 0;
  if (row % layout.elements != 0) {
    cursor.fail(fmt::format("{}: rows of {} are not whole blocks of {}", what, row, layout.elements));
  }
  if (__builtin_mul_overflow(count / layout.elements, layout.bytes, &bytes)) {
    cursor.fail(fmt::format("{}: its shape overflows", what));
  }
  placed.size = static_cast<uint64_t>(bytes);
  return placed;
}

/// Gives every tensor its bytes; refuses what is misaligned, outside the data or on top of another tensor.
void place(std::vector<Placed>& tensors, std::span<const std::byte> data, uint64_t alignment, const Cursor& cursor) {
  std::vector<const Placed*> ordered;
  for (Placed& tensor : tensors) {
    const std::string what = fmt::format("tensor {}", quote(tensor.view.name));
    if (tensor.offset % alignment != 0) {
      cursor.fail(fmt::format("{}: offset {} is not a multiple of {}", what, tensor.offset, alignment));
    }
    if (tensor.offset > data.size() || tensor.size > data.size() - tensor.offset) {
      cursor.fail(
          fmt::format("{}: {} bytes at {} lie outside the file, which has {} bytes of data (incomplete download?)",
                      what, tensor.size, tensor.offset, data.size()));
    }
    tensor.view.bytes = data.subspan(tensor.offset, tensor.size);
    if (tensor.size > 0) ordered.push_back(&tensor);
  }
  std::sort(ordered.begin(), ordered.end(), [](const Placed* a, const Placed* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < ordered.size(); ++i) {
    if (ordered[i]->offset < ordered[i - 1]->offset + ordered[i - 1]->size) {
      cursor.fail(
          fmt::format("tensor {}: overlaps tensor {}", quote(ordered[i]->view.name), quote(ordered[i - 1]->view.name)));
    }
  }
}

}  // namespace

GgufFile GgufFile::open(const std::filesystem::path& path) {
  auto mapping = MappedFile::open(path);
  GgufFile file = parse(mapping->bytes(), path.string());
  file.mapping_ = std::move(mapping);
  return file;
}

GgufFile GgufFile::parse(std::span<const std::byte> bytes, std::string_view name) {
  GgufFile file;
  file.name_ = name;
  Cursor cursor(bytes, name);
  const Counts counts = read_preamble(cursor);
  for (uint64_t i = 0; i < counts.values; ++i) {
    std::string key(cursor.read_string(kMaximumKey, "a metadata key"));
    GgufValue value = read_value(cursor, fmt::format("metadata {}", quote(key)));
    if (!file.metadata_.emplace(key, std::move(value)).second) {
      cursor.fail(fmt::format("metadata {} occurs twice", quote(key)));
    }
  }
  std::vector<Placed> tensors;
  std::set<std::string> names;
  for (uint64_t i = 0; i < counts.tensors; ++i) {
    tensors.push_back(read_tensor_info(cursor));
    if (!names.insert(tensors.back().view.name).second) {
      cursor.fail(fmt::format("tensor {} occurs twice", quote(tensors.back().view.name)));
    }
  }
  uint64_t alignment = kGgufDefaultAlignment;
  if (const auto found = file.metadata_.find("general.alignment"); found != file.metadata_.end()) {
    const auto* value = std::get_if<uint64_t>(&found->second);
    if (value == nullptr || *value == 0 || *value > kMaximumAlignment || (*value & (*value - 1)) != 0) {
      cursor.fail("general.alignment is not a power of two up to 1048576");
    }
    alignment = *value;
  }
  const uint64_t padding = (alignment - cursor.position() % alignment) % alignment;
  if (counts.tensors > 0) cursor.skip(padding, "the padding before the tensors");
  place(tensors, bytes.subspan(cursor.position()), alignment, cursor);
  for (Placed& tensor : tensors) file.tensors_.push_back(std::move(tensor.view));
  return file;
}

}  // namespace fettle::hub
