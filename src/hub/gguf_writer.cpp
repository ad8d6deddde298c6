// SPDX-License-Identifier: Apache-2.0
#include "hub/gguf_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <future>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
#include "hub/encode.h"

namespace fettle::hub {
namespace {

constexpr uint32_t kVersion = 3;
constexpr int64_t kPieceElements = int64_t{8} << 20;  // 32 MB as float32

template <typename T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void append_text(std::string& bytes, std::string_view text) {
  append<uint64_t>(bytes, text.size());
  bytes += text;
}

uint64_t padding_after(uint64_t size) {
  return (kGgufDefaultAlignment - size % kGgufDefaultAlignment) % kGgufDefaultAlignment;
}

void append_tensor_info(std::string& bytes, const GgufTensor& tensor, uint64_t offset) {
  const std::vector<int64_t>& shape = tensor.source.shape;
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (shape.size() > kGgufMaximumDimensions || row % block_layout(tensor.dtype).elements != 0) {
    throw Error(ExitCode::kInternal,
                fmt::format("tensor {} cannot be written as {}", quote(tensor.name), dtype_name(tensor.dtype)));
  }
  append_text(bytes, tensor.name);
  append(bytes, static_cast<uint32_t>(shape.size()));
  for (auto size = shape.rbegin(); size != shape.rend(); ++size) append<int64_t>(bytes, *size);
  append(bytes, gguf_type(tensor.dtype).id);
  append(bytes, offset);
}

std::string make_header(const GgufMetadata& metadata, std::span<const GgufTensor> tensors) {
  std::string bytes;
  append(bytes, kGgufMagic);
  append(bytes, kVersion);
  append<uint64_t>(bytes, tensors.size());
  append(bytes, metadata.size());
  bytes += metadata.bytes();
  uint64_t offset = 0;
  for (const GgufTensor& tensor : tensors) {
    append_tensor_info(bytes, tensor, offset);
    const auto size = static_cast<uint64_t>(gguf_bytes(tensor));
    offset += size + padding_after(size);
  }
  bytes.append(padding_after(bytes.size()), '\0');
  return bytes;
}

[[noreturn]] void fail_unstorable(const GgufTensor& tensor, float value) {
  if (!std::isfinite(value)) {
    throw Error(ExitCode::kData, fmt::format("tensor {} holds {}", quote(tensor.source.name), value),
                "the model is broken, perhaps by a training that diverged: give another one");
  }
  throw Error(ExitCode::kData,
              fmt::format("tensor {} holds {}, which is too large for {}", quote(tensor.source.name), value,
                          gguf_type(tensor.dtype).name),
              "write f32 or bf16");
}

/// Calls body(begin, end) for parts of [0, count), on threads where the system gives them, and throws what it throws.
void in_parts(int64_t count, int64_t threads, const std::function<void(int64_t, int64_t)>& body) {
  std::vector<std::future<void>> parts;
  const int64_t each = std::max<int64_t>(1, (count + threads - 1) / threads);
  for (int64_t begin = 0; begin < count; begin += each) {
    // Both policies: without a thread the part is done by get().
    parts.push_back(std::async(std::launch::async | std::launch::deferred, body, begin, std::min(begin + each, count)));
  }
  for (auto& part : parts) part.get();
}

/// Rows of a tensor, in the order in which they are written. A bias has rows of one element; a norm is one row.
class Rows {
 public:
  explicit Rows(const GgufTensor& tensor) : tensor_(tensor) {
    const int64_t elements = element_count(tensor.source);
    const bool by_head = tensor.interleaved_heads != 0;
    count_ = by_head || tensor.source.shape.size() > 1 ? tensor.source.shape[0] : 1;
    length_ = count_ == 0 ? 0 : elements / count_;
    if (by_head) rows_a_head_ = count_ / tensor.interleaved_heads;
  }

  [[nodiscard]] int64_t count() const { return count_; }
  [[nodiscard]] int64_t length() const { return length_; }

  void read(int64_t first, std::span<float> values) const {
    if (!tensor_.values.empty()) {
      std::copy_n(tensor_.values.data() + first * length_, values.size(), values.data());
      return;
    }
    if (rows_a_head_ == 0) return read_floats(tensor_.source, values, first * length_);
    const auto length = static_cast<size_t>(length_);
    for (size_t i = 0; i * length < values.size(); ++i) {
      const int64_t row = separated_row(first + static_cast<int64_t>(i), rows_a_head_);
      read_floats(tensor_.source, values.subspan(i * length, length), row * length_);
    }
  }

 private:
  const GgufTensor& tensor_;
  int64_t count_ = 0;
  int64_t length_ = 0;
  int64_t rows_a_head_ = 0;  // 0: no order of their own
};

class TensorWriter {
 public:
  TensorWriter(AtomicFile& file, int64_t threads) : file_(file), threads_(threads) {}

  void write(const GgufTensor& tensor) {
    const Rows rows(tensor);
    const int64_t piece = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, rows.length()));
    for (int64_t first = 0; first < rows.count(); first += piece) {
      write_piece(tensor, rows, first, std::min(piece, rows.count() - first));
    }
    static constexpr std::array<std::byte, kGgufDefaultAlignment> kZeros{};
    file_.write(std::span(kZeros).first(padding_after(static_cast<uint64_t>(gguf_bytes(tensor)))));
    if (tensor.values.empty()) release_pages(tensor.source.bytes);
  }

 private:
  void write_piece(const GgufTensor& tensor, const Rows& rows, int64_t first, int64_t count) {
    const auto length = static_cast<size_t>(rows.length());
    const BlockLayout layout = block_layout(tensor.dtype);
    const auto row_bytes = static_cast<size_t>(rows.length() / layout.elements * layout.bytes);
    values_.resize(static_cast<size_t>(count) * length);
    encoded_.resize(static_cast<size_t>(count) * row_bytes);
    in_parts(count, threads_, [&](int64_t begin, int64_t end) {
      const auto part =
          std::span(values_).subspan(static_cast<size_t>(begin) * length, static_cast<size_t>(end - begin) * length);
      rows.read(first + begin, part);
      if (const auto value = find_unstorable(part, tensor.dtype)) fail_unstorable(tensor, *value);
      encode_floats(part, tensor.dtype, encoded_.data() + static_cast<size_t>(begin) * row_bytes);
    });
    file_.write(std::span<const std::byte>(encoded_));
  }

  AtomicFile& file_;
  int64_t threads_;
  std::vector<float> values_;
  std::vector<std::byte> encoded_;
};

}  // namespace

void GgufMetadata::begin(std::string_view key, GgufValueType type) {
  append_text(bytes_, key);
  append(bytes_, type);
  ++size_;
}

void GgufMetadata::begin_array(std::string_view key, GgufValueType element, size_t size) {
  begin(key, GgufValueType::kArray);
  append(bytes_, element);
  append<uint64_t>(bytes_, size);
}

void GgufMetadata::integer(std::string_view key, int64_t value) {
  if (value < 0 || value > UINT32_MAX) {
    throw Error(ExitCode::kData, fmt::format("{} = {} does not fit into the GGUF format", key, value),
                "correct the model's config.json");
  }
  begin(key, GgufValueType::kUint32);
  append(bytes_, static_cast<uint32_t>(value));
}

void GgufMetadata::number(std::string_view key, double value) {
  begin(key, GgufValueType::kFloat32);
  append(bytes_, static_cast<float>(value));
}

void GgufMetadata::flag(std::string_view key, bool value) {
  begin(key, GgufValueType::kBool);
  append(bytes_, static_cast<uint8_t>(value));
}

void GgufMetadata::text(std::string_view key, std::string_view value) {
  begin(key, GgufValueType::kString);
  append_text(bytes_, value);
}

void GgufMetadata::integers(std::string_view key, std::span<const int32_t> values) {
  begin_array(key, GgufValueType::kInt32, values.size());
  for (const int32_t value : values) append(bytes_, value);
}

void GgufMetadata::numbers(std::string_view key, std::span<const float> values) {
  begin_array(key, GgufValueType::kFloat32, values.size());
  for (const float value : values) append(bytes_, value);
}

void GgufMetadata::texts(std::string_view key, std::span<const std::string> values) {
  begin_array(key, GgufValueType::kString, values.size());
  for (const std::string& value : values) append_text(bytes_, value);
}

int64_t gguf_bytes(const GgufTensor& tensor) {
  const BlockLayout layout = block_layout(tensor.dtype);
  return element_count(tensor.source) / layout.elements * layout.bytes;
}

void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata, std::span<const GgufTensor> tensors,
                int64_t threads) {
  AtomicFile file(path, PageCache::kBypass);
  file.write(make_header(metadata, tensors));
  TensorWriter writer(file, std::max<int64_t>(1, threads));
  for (const GgufTensor& tensor : tensors) writer.write(tensor);
  file.commit();
}

}  // namespace fettle::hub
