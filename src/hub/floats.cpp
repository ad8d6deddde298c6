// SPDX-License-Identifier: Apache-2.0
/// read_floats: every stored type to float32. Loops without branches, over memory that may be unaligned, so that the
/// compiler vectorises them.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "base/utf8.h"
#include "hub/gguf_format.h"
#include "hub/json.h"
#include "hub/tensor.h"

namespace fettle::hub {
namespace {

constexpr int64_t kBlock = 32;  // elements of a quantized block

template <typename T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

/// IEEE half to float, subnormals included without relying on the processor's treatment of float subnormals.
float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  const uint32_t exponent = (half >> 10) & 0x1FU;
  const uint32_t mantissa = half & 0x3FFU;
  const auto subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(mantissa)) * 0x1p-24F);
  const uint32_t infinite = 0x7F800000U | (mantissa << 13);
  const uint32_t normal = ((exponent + 112U) << 23) | (mantissa << 13);
  const uint32_t magnitude = exponent == 0 ? subnormal : exponent == 31 ? infinite : normal;
  return std::bit_cast<float>(sign | magnitude);
}

float bfloat_to_float(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

template <typename T, typename Convert>
void convert_plain(const std::byte* bytes, std::span<float> out, Convert convert) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = convert(load<T>(bytes + i * sizeof(T)));
}

/// Block layouts of ggml: q8_0 = {f16 d; i8 q[32]}, q4_0 = {f16 d; 32 nibbles}, q4_1 = {f16 d; f16 m; 32 nibbles};
/// byte i of the nibbles holds element i (low) and i + 16 (high).
void decode_q8_0(const std::byte* block, float* out) {
  const float scale = half_to_float(load<uint16_t>(block));
  for (int64_t i = 0; i < kBlock; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * scale;
}

void decode_q4_0(const std::byte* block, float* out) {
  const float scale = half_to_float(load<uint16_t>(block));
  for (int64_t i = 0; i < kBlock / 2; ++i) {
    const auto pair = static_cast<int>(block[2 + i]);
    out[i] = static_cast<float>((pair & 0xF) - 8) * scale;
    out[i + kBlock / 2] = static_cast<float>((pair >> 4) - 8) * scale;
  }
}

void decode_q4_1(const std::byte* block, float* out) {
  const float scale = half_to_float(load<uint16_t>(block));
  const float minimum = half_to_float(load<uint16_t>(block + 2));
  for (int64_t i = 0; i < kBlock / 2; ++i) {
    const auto pair = static_cast<int>(block[4 + i]);
    out[i] = static_cast<float>(pair & 0xF) * scale + minimum;
    out[i + kBlock / 2] = static_cast<float>(pair >> 4) * scale + minimum;
  }
}

/// q5_0 = {f16 d; u32 fifth bits; 32 nibbles}: bit i of the fifth bits is element i's highest. q5_1 has m after d.
template <typename ToValue>
void decode_q5(const std::byte* fifth_bits, float* out, ToValue to_value) {
  const auto high = load<uint32_t>(fifth_bits);
  for (int64_t i = 0; i < kBlock / 2; ++i) {
    const auto pair = static_cast<uint32_t>(fifth_bits[4 + i]);
    out[i] = to_value(static_cast<int>((pair & 0xFU) | (high >> i & 1U) << 4));
    out[i + kBlock / 2] = to_value(static_cast<int>(pair >> 4 | (high >> (i + kBlock / 2) & 1U) << 4));
  }
}

void decode_q5_0(const std::byte* block, float* out) {
  const float scale = half_to_float(load<uint16_t>(block));
  decode_q5(block + 2, out, [scale](int q) { return static_cast<float>(q - 16) * scale; });
}

void decode_q5_1(const std::byte* block, float* out) {
  const float scale = half_to_float(load<uint16_t>(block));
  const float minimum = half_to_float(load<uint16_t>(block + 2));
  decode_q5(block + 4, out, [=](int q) { return static_cast<float>(q) * scale + minimum; });
}

/// Whole blocks go straight to `out`; the range's ragged ends through a buffer.
template <typename Decode>
void convert_blocks(const TensorView& view, std::span<float> out, int64_t first, Decode decode) {
  const int64_t block_bytes = block_layout(view.dtype).bytes;
  const int64_t last = first + static_cast<int64_t>(out.size());
  for (int64_t position = first; position < last;) {
    const int64_t skipped = position % kBlock;
    const int64_t count = std::min(kBlock - skipped, last - position);
    const std::byte* block = view.bytes.data() + position / kBlock * block_bytes;
    float* target = out.data() + (position - first);
    if (count == kBlock) {
      decode(block, target);
    } else {
      std::array<float, kBlock> whole;
      decode(block, whole.data());
      std::copy_n(whole.data() + skipped, count, target);
    }
    position += count;
  }
}

/// Elements [first, first + out.size()) in the file's own order.
void read_stored(const TensorView& view, std::span<float> out, int64_t first) {
  const std::byte* bytes =
      view.bytes.data() +
      (block_layout(view.dtype).elements == 1 ? first * block_layout(view.dtype).bytes : int64_t{0});
  switch (view.dtype) {
    case DType::kF64:
      return convert_plain<double>(bytes, out, [](double value) { return static_cast<float>(value); });
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), bytes, out.size_bytes());
      return;
    case DType::kF16:
      return convert_plain<uint16_t>(bytes, out, half_to_float);
    case DType::kBF16:
      return convert_plain<uint16_t>(bytes, out, bfloat_to_float);
    case DType::kQ8_0:
      return convert_blocks(view, out, first, decode_q8_0);
    case DType::kQ4_0:
      return convert_blocks(view, out, first, decode_q4_0);
    case DType::kQ4_1:
      return convert_blocks(view, out, first, decode_q4_1);
    case DType::kQ5_0:
      return convert_blocks(view, out, first, decode_q5_0);
    case DType::kQ5_1:
      return convert_blocks(view, out, first, decode_q5_1);
    default:
      throw Error(ExitCode::kData,
                  fmt::format("tensor {}: {} where floating-point weights are expected", quote(view.name),
                              dtype_name(view.dtype)),
                  "quantized checkpoints in integer tensors are not supported; use the model in bf16, f16 or f32");
  }
}

}  // namespace

void read_floats(const TensorView& view, std::span<float> out, int64_t first) {
  const int64_t total = element_count(view);
  const auto count = static_cast<int64_t>(out.size());
  if (first < 0 || first > total || count > total - first) {
    throw Error(ExitCode::kInternal, fmt::format("tensor {}: elements {}..{} of {} asked for", quote(view.name), first,
                                                 first + count, total));
  }
  if (view.interleaved_heads == 0 || count == 0) return read_stored(view, out, first);

  const int64_t columns = total / view.shape[0];  // 1 for a bias
  const int64_t rows_a_head = view.shape[0] / view.interleaved_heads;
  for (int64_t position = first; position < first + count;) {
    const int64_t row = position / columns;
    const int64_t column = position % columns;
    const int64_t length = std::min(columns - column, first + count - position);
    read_stored(view, out.subspan(static_cast<size_t>(position - first), static_cast<size_t>(length)),
                interleaved_row(row, rows_a_head) * columns + column);
    position += length;
  }
}

}  // namespace fettle::hub
