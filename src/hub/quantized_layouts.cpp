// SPDX-License-Identifier: Apache-2.0
/// Codes as the layouts pack them.
///
/// compressed-tensors: the codes of a row are one stream of bits, the lowest first, in int32 words; zero points
/// likewise down the rows. GPTQ: the same streams, but weights go down the inputs ([C·b/32, O]) and zero points along
/// the outputs; version 1 stores a zero point less one. AWQ: words of eight outputs in an order of their own.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "hub/encode.h"
#include "hub/json.h"
#include "hub/quantization.h"

namespace fettle::hub {
namespace {

constexpr int64_t kWordBits = 32;
/// Output 8w + kAwqOrder[k] of a word w is at bits 4k … 4k+3.
constexpr std::array<int64_t, 8> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};

int64_t words(int64_t codes, int bits) {
  return (codes * bits + kWordBits - 1) / kWordBits;
}

/// A matrix of int32 words, or of what they hold.
template <typename T>
struct Grid {
  std::vector<T> values;
  int64_t rows;
  int64_t columns;

  Grid(int64_t rows_, int64_t columns_)
      : values(static_cast<size_t>(rows_ * columns_)), rows(rows_), columns(columns_) {}
  T& at(int64_t row, int64_t column) { return values[static_cast<size_t>(row * columns + column)]; }
  const T& at(int64_t row, int64_t column) const { return values[static_cast<size_t>(row * columns + column)]; }
};
using Words = Grid<uint32_t>;
using Codes = Grid<uint8_t>;

/// Codes [n, m] → words [n, ⌈m·bits/32⌉], a stream of bits along each row.
Words pack_along(const Codes& codes, int bits) {
  Words packed(codes.rows, words(codes.columns, bits));
  for (int64_t row = 0; row < codes.rows; ++row) {
    for (int64_t i = 0; i < codes.columns; ++i) {
      const int64_t bit = i * bits;
      const uint64_t shifted = static_cast<uint64_t>(codes.at(row, i)) << (bit % kWordBits);
      packed.at(row, bit / kWordBits) |= static_cast<uint32_t>(shifted);
      if (shifted >> kWordBits != 0) packed.at(row, bit / kWordBits + 1) |= static_cast<uint32_t>(shifted >> kWordBits);
    }
  }
  return packed;
}

Codes unpack_along(const Words& packed, int64_t columns, int bits) {
  Codes codes(packed.rows, columns);
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (int64_t row = 0; row < packed.rows; ++row) {
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t word = i * bits / kWordBits;
      uint64_t both = packed.at(row, word);
      if (word + 1 < packed.columns) both |= static_cast<uint64_t>(packed.at(row, word + 1)) << kWordBits;
      codes.at(row, i) = static_cast<uint8_t>((both >> (i * bits % kWordBits)) & mask);
    }
  }
  return codes;
}

template <typename T>
Grid<T> transposed(const Grid<T>& from) {
  Grid<T> to(from.columns, from.rows);
  constexpr int64_t kTile = 32;
  for (int64_t first = 0; first < from.columns; first += kTile) {
    for (int64_t row = 0; row < from.rows; ++row) {
      for (int64_t i = first; i < std::min(first + kTile, from.columns); ++i) to.at(i, row) = from.at(row, i);
    }
  }
  return to;
}

/// Codes [n, O] → words [n, O/8].
Words pack_awq(const Codes& codes) {
  Words packed(codes.rows, codes.columns / 8);
  for (int64_t row = 0; row < codes.rows; ++row) {
    for (int64_t word = 0; word < packed.columns; ++word) {
      for (size_t k = 0; k < kAwqOrder.size(); ++k) {
        packed.at(row, word) |= static_cast<uint32_t>(codes.at(row, 8 * word + kAwqOrder[k])) << (4 * k);
      }
    }
  }
  return packed;
}

Codes unpack_awq(const Words& packed) {
  Codes codes(packed.rows, packed.columns * 8);
  for (int64_t row = 0; row < packed.rows; ++row) {
    for (int64_t word = 0; word < packed.columns; ++word) {
      for (size_t k = 0; k < kAwqOrder.size(); ++k) {
        codes.at(row, 8 * word + kAwqOrder[k]) = (packed.at(row, word) >> (4 * k)) & 15;
      }
    }
  }
  return codes;
}

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<std::byte> float_bytes(const std::vector<float>& values, DType type) {
  const auto width = static_cast<size_t>(block_layout(type).bytes);
  std::vector<std::byte> bytes(values.size() * width);
  encode_floats(values, type, bytes.data());
  return bytes;
}

StoredTensor stored(std::string name, const Words& grid) {
  return {std::move(name), DType::kI32, {grid.rows, grid.columns}, bytes_of(grid.values)};
}

uint8_t middle(int bits) {
  return static_cast<uint8_t>(1u << (bits - 1));
}

/// Zero points as [O, G], also where they are all the middle.
Codes zero_grid(const QuantizedMatrix& matrix) {
  Codes zeros(matrix.rows, matrix.columns / matrix.group);
  if (matrix.zeros.empty()) {
    std::ranges::fill(zeros.values, middle(matrix.bits));
  } else {
    zeros.values = matrix.zeros;
  }
  return zeros;
}

Grid<float> scale_grid(const QuantizedMatrix& matrix) {
  Grid<float> scales(matrix.rows, matrix.columns / matrix.group);
  scales.values = matrix.scales;
  return scales;
}

Codes code_grid(const QuantizedMatrix& matrix) {
  Codes codes(matrix.rows, matrix.columns);
  codes.values = matrix.codes;
  return codes;
}

[[noreturn]] void cannot_hold(const std::string& module, const std::string& what,
                              const char* hint = "set woq_format: compressed-tensors") {
  throw Error(ExitCode::kConfig, fmt::format("{}: {}", module, what), hint);
}

std::vector<StoredTensor> encode_compressed(const std::string& module, const QuantizedMatrix& matrix,
                                            DType scale_type) {
  std::vector<StoredTensor> tensors;
  tensors.push_back(stored(module + ".weight_packed", pack_along(code_grid(matrix), matrix.bits)));
  tensors.emplace_back(module + ".weight_scale", scale_type,
                       std::vector<int64_t>{matrix.rows, matrix.columns / matrix.group},
                       float_bytes(matrix.scales, scale_type));
  tensors.emplace_back(module + ".weight_shape", DType::kI64, std::vector<int64_t>{2},
                       bytes_of(std::vector<int64_t>{matrix.rows, matrix.columns}));
  if (!matrix.zeros.empty()) {
    const Words down = pack_along(transposed(zero_grid(matrix)), matrix.bits);
    tensors.push_back(stored(module + ".weight_zero_point", transposed(down)));
  }
  return tensors;
}

std::vector<StoredTensor> encode_gptq(const Quantization& quantization, const std::string& module,
                                      const QuantizedMatrix& matrix) {
  Codes zeros = zero_grid(matrix);
  if (quantization.layout == QuantizedLayout::kGptq) {
    const auto mask = static_cast<uint8_t>((1u << matrix.bits) - 1);
    for (uint8_t& zero : zeros.values) zero = static_cast<uint8_t>(zero - 1) & mask;
  }
  std::vector<int32_t> groups = matrix.group_of;
  if (groups.empty()) {
    for (int64_t i = 0; i < matrix.columns; ++i) groups.push_back(static_cast<int32_t>(i / matrix.group));
  }
  const Words codes = pack_along(code_grid(matrix), matrix.bits);
  const Grid<float> scales = transposed(scale_grid(matrix));
  std::vector<StoredTensor> tensors;
  tensors.push_back(stored(module + ".qweight", transposed(codes)));
  tensors.push_back(stored(module + ".qzeros", pack_along(transposed(zeros), matrix.bits)));
  tensors.emplace_back(module + ".scales", DType::kF16, std::vector<int64_t>{scales.rows, scales.columns},
                       float_bytes(scales.values, DType::kF16));
  tensors.emplace_back(module + ".g_idx", DType::kI32, std::vector<int64_t>{matrix.columns}, bytes_of(groups));
  return tensors;
}

std::vector<StoredTensor> encode_awq(const std::string& module, const QuantizedMatrix& matrix) {
  const Grid<float> scales = transposed(scale_grid(matrix));
  std::vector<StoredTensor> tensors;
  tensors.push_back(stored(module + ".qweight", pack_awq(transposed(code_grid(matrix)))));
  tensors.push_back(stored(module + ".qzeros", pack_awq(transposed(zero_grid(matrix)))));
  tensors.emplace_back(module + ".scales", DType::kF16, std::vector<int64_t>{scales.rows, scales.columns},
                       float_bytes(scales.values, DType::kF16));
  return tensors;
}

/// The tensors of a layer in a file.
class LayerReader {
 public:
  LayerReader(const TensorSource& source, std::string module) : source_(source), module_(std::move(module)) {}

  [[noreturn]] void fail(const char* name, const std::string& what) const {
    throw Error(ExitCode::kData, fmt::format("{}.{} {}", module_, name, what), kWrongContentHint);
  }

  [[nodiscard]] const TensorView& view(const char* name, const std::vector<int64_t>& shape) const {
    const TensorView* found = source_.find(fmt::format("{}.{}", module_, name));
    if (found == nullptr) fail(name, "is missing");
    if (found->shape != shape) {
      fail(name, fmt::format("is [{}] and should be [{}]", fmt::join(found->shape, ", "), fmt::join(shape, ", ")));
    }
    return *found;
  }
  [[nodiscard]] Words packed(const char* name, int64_t rows, int64_t columns) const {
    const TensorView& from = view(name, {rows, columns});
    if (from.dtype != DType::kI32) fail(name, fmt::format("is {} and should be I32", dtype_name(from.dtype)));
    Words result(rows, columns);
    std::memcpy(result.values.data(), from.bytes.data(), from.bytes.size());
    return result;
  }
  [[nodiscard]] Grid<float> scales(const char* name, int64_t rows, int64_t columns) const {
    const TensorView& from = view(name, {rows, columns});
    Grid<float> result(rows, columns);
    read_floats(from, result.values);
    for (const float scale : result.values) {
      if (!std::isfinite(scale)) fail(name, "holds a number that is not finite");
    }
    return result;
  }
  /// Empty where every group has its inputs side by side.
  [[nodiscard]] std::vector<int32_t> groups(int64_t columns, int64_t group) const {
    const TensorView* found = source_.find(module_ + ".g_idx");
    if (found == nullptr) return {};
    const TensorView& from = view("g_idx", {columns});
    if (from.dtype != DType::kI32) fail("g_idx", "is not I32");
    std::vector<int32_t> groups(static_cast<size_t>(columns));
    std::memcpy(groups.data(), from.bytes.data(), from.bytes.size());
    std::vector<int64_t> inputs(static_cast<size_t>(columns / group));
    bool is_plain = true;
    for (int64_t i = 0; i < columns; ++i) {
      const int32_t of = groups[static_cast<size_t>(i)];
      if (of < 0 || of >= std::ssize(inputs)) fail("g_idx", fmt::format("names group {} of {}", of, inputs.size()));
      if (++inputs[static_cast<size_t>(of)] > group) fail("g_idx", fmt::format("gives group {} too many inputs", of));
      is_plain = is_plain && of == i / group;
    }
    return is_plain ? std::vector<int32_t>() : groups;
  }
  /// weight_shape, which compressed-tensors unpacks by.
  void require_shape(int64_t rows, int64_t columns) const {
    const TensorView& from = view("weight_shape", {2});
    std::array<int64_t, 2> shape{};
    if (from.dtype == DType::kI64) {
      std::memcpy(shape.data(), from.bytes.data(), sizeof(shape));
    } else if (from.dtype == DType::kI32) {
      std::array<int32_t, 2> narrow{};
      std::memcpy(narrow.data(), from.bytes.data(), sizeof(narrow));
      std::ranges::copy(narrow, shape.begin());
    } else {
      fail("weight_shape", fmt::format("is {} and should be I64", dtype_name(from.dtype)));
    }
    if (shape == std::array{rows, columns}) return;
    fail("weight_shape", fmt::format("says {} and should say {} x {}", fmt::join(shape, " x "), rows, columns));
  }
  [[nodiscard]] bool has(const char* name) const {
    return source_.find(fmt::format("{}.{}", module_, name)) != nullptr;
  }

 private:
  const TensorSource& source_;
  std::string module_;
};

/// Drops zeros that are all the middle.
void set_zeros(QuantizedMatrix& matrix, std::vector<uint8_t> zeros) {
  const uint8_t usual = middle(matrix.bits);
  if (std::ranges::any_of(zeros, [usual](uint8_t zero) { return zero != usual; })) matrix.zeros = std::move(zeros);
}

}  // namespace

StoredTensor::StoredTensor(std::string name, DType dtype, std::vector<int64_t> shape, std::vector<std::byte> content)
    : bytes(std::move(content)) {
  view = {.name = std::move(name), .dtype = dtype, .shape = std::move(shape), .bytes = bytes};
}

void require_representable(const Quantization& quantization, const std::string& module, int64_t rows, int64_t columns) {
  if (quantization.layout == QuantizedLayout::kCompressedTensors) return;
  const bool is_awq = quantization.layout == QuantizedLayout::kAwq;
  if (rows * quantization.bits % kWordBits == 0 && (is_awq || columns * quantization.bits % kWordBits == 0)) return;
  cannot_hold(module, fmt::format("{}'s files cannot hold {} x {} weights of {} bits: they come in words of 32 bits",
                                  is_awq ? "AWQ" : "GPTQ", rows, columns, quantization.bits));
}

std::vector<StoredTensor> encode(const Quantization& quantization, const std::string& module,
                                 const QuantizedMatrix& matrix, DType scale_type) {
  require_representable(quantization, module, matrix.rows, matrix.columns);
  const bool states_groups =
      quantization.layout == QuantizedLayout::kGptq || quantization.layout == QuantizedLayout::kGptqV2;
  if (!states_groups && !matrix.group_of.empty()) {
    cannot_hold(module, "this layout has no place for the order of columns that act_order gives without static_groups",
                "set woq_format: gptq_v2, or static_groups: true");
  }
  switch (quantization.layout) {
    case QuantizedLayout::kCompressedTensors:
      return encode_compressed(module, matrix, scale_type);
    case QuantizedLayout::kAwq:
      return encode_awq(module, matrix);
    case QuantizedLayout::kGptq:
    case QuantizedLayout::kGptqV2:
      break;
  }
  return encode_gptq(quantization, module, matrix);
}

std::vector<TensorView> expected_tensors(const Quantization& quantization, const TensorSource& source,
                                         const std::string& module, int64_t rows, int64_t columns) {
  if (source.find(module + ".weight") != nullptr) return {};
  const int64_t groups = columns / quantization.group_of(columns);
  const int bits = quantization.bits;
  const auto tensor = [&](const char* name, std::vector<int64_t> shape) {
    return TensorView{.name = fmt::format("{}.{}", module, name), .shape = std::move(shape), .bytes = {}};
  };
  if (quantization.layout == QuantizedLayout::kCompressedTensors) {
    std::vector<TensorView> all = {tensor("weight_packed", {rows, words(columns, bits)}),
                                   tensor("weight_scale", {rows, groups}), tensor("weight_shape", {2})};
    if (!quantization.symmetric) all.push_back(tensor("weight_zero_point", {words(rows, bits), groups}));
    return all;
  }
  const bool is_awq = quantization.layout == QuantizedLayout::kAwq;
  std::vector<TensorView> all = {
      tensor("qweight", is_awq ? std::vector{columns, rows / 8} : std::vector{words(columns, bits), rows}),
      tensor("qzeros", {groups, words(rows, bits)}), tensor("scales", {groups, rows})};
  if (!is_awq && source.find(module + ".g_idx") != nullptr) all.push_back(tensor("g_idx", {columns}));
  return all;
}

QuantizedMatrix decode(const Quantization& quantization, const TensorSource& source, const std::string& module,
                       int64_t rows, int64_t columns) {
  const LayerReader reader(source, module);
  const int bits = quantization.bits;
  QuantizedMatrix matrix{.bits = bits, .rows = rows, .columns = columns, .group = quantization.group_of(columns)};
  if (columns % matrix.group != 0) {
    reader.fail("weight", fmt::format("has {} inputs, which groups of {} do not divide", columns, matrix.group));
  }
  const int64_t groups = columns / matrix.group;
  if (quantization.layout == QuantizedLayout::kCompressedTensors) {
    reader.require_shape(rows, columns);
    matrix.codes = unpack_along(reader.packed("weight_packed", rows, words(columns, bits)), columns, bits).values;
    matrix.scales = reader.scales("weight_scale", rows, groups).values;
    if (!quantization.symmetric) {
      const Words down = reader.packed("weight_zero_point", words(rows, bits), groups);
      set_zeros(matrix, transposed(unpack_along(transposed(down), rows, bits)).values);
    }
    return matrix;
  }
  matrix.scales = transposed(reader.scales("scales", groups, rows)).values;
  if (quantization.layout == QuantizedLayout::kAwq) {
    if (rows % 8 != 0) reader.fail("qweight", fmt::format("cannot hold {} rows", rows));
    matrix.codes = transposed(unpack_awq(reader.packed("qweight", columns, rows / 8))).values;
    set_zeros(matrix, transposed(unpack_awq(reader.packed("qzeros", groups, rows / 8))).values);
    return matrix;
  }
  matrix.codes = unpack_along(transposed(reader.packed("qweight", words(columns, bits), rows)), columns, bits).values;
  Codes zeros = unpack_along(reader.packed("qzeros", groups, words(rows, bits)), rows, bits);
  if (quantization.layout == QuantizedLayout::kGptq) {
    for (uint8_t& zero : zeros.values) zero = static_cast<uint8_t>(zero + 1);
  }
  set_zeros(matrix, transposed(zeros).values);
  if (quantization.act_order && groups > 1 && !reader.has("g_idx"))
    reader.fail("g_idx", "is missing; desc_act is true");
  matrix.group_of = reader.groups(columns, matrix.group);
  return matrix;
}

}  // namespace fettle::hub
