// SPDX-License-Identifier: Apache-2.0
#include "ops/grouped_weight.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "ops/cpu/grouped.h"
#include "ops/dispatch.h"
#include "ops/share_out.h"
#include "ops/to_device.h"

namespace fettle::ops {
namespace {

constexpr int64_t kRows = cpu::kGroupedRows;

// Expanding a panel (PanelProducts) takes as long as 17 to 36 tokens' products with the codes (4 bits, 8 bits; an
// expanded matrix in memory as long as 200). It pays only where dense products are much faster: by AMX, and by MKL's of
// float32 from about 256 tokens on.
constexpr int64_t kMostTokensBesideAmx = 20;
constexpr int64_t kMostFloatTokens = 256;
// Of more, a large product of the whole matrix makes better use of the caches.
constexpr int64_t kMostPanelTokens = 1024;

int64_t container(int bits) {
  return bits <= 2 ? 2 : bits <= 4 ? 4 : 8;
}
int middle(int bits) {
  return 1 << (bits - 1);
}
int64_t blocks(const GroupedWeight& weight) {
  return (weight.rows + kRows - 1) / kRows;
}
int64_t groups(const GroupedWeight& weight) {
  return weight.columns / weight.group;
}

/// Its tensors on the CPU, as the kernels take them.
cpu::GroupedMatrix matrix(const GroupedWeight& weight) {
  return {.container = container(weight.bits),
          .groups = groups(weight),
          .group = weight.group,
          .codes = weight.codes.const_data_ptr<uint8_t>(),
          .scales = weight.scales.const_data_ptr<float>(),
          .zeros = weight.zeros.defined() ? weight.zeros.const_data_ptr<int8_t>() : nullptr};
}

/// Where each input of a group lies.
std::vector<cpu::GroupedPlace> places(const GroupedWeight& weight) {
  std::vector<cpu::GroupedPlace> all;
  for (int64_t i = 0; i < weight.group; ++i) all.push_back(cpu::grouped_place(container(weight.bits), i));
  return all;
}

void check(const PlainCodes& plain) {
  const auto is = [](const at::Tensor& tensor, at::ScalarType type, at::IntArrayRef shape) {
    return tensor.is_cpu() && tensor.scalar_type() == type && tensor.sizes() == shape;
  };
  TORCH_CHECK(plain.bits >= 1 && plain.bits <= 8, "pack: ", plain.bits, " bits");
  TORCH_CHECK(plain.codes.dim() == 2 && is(plain.codes, at::kByte, plain.codes.sizes()), "pack: codes ",
              plain.codes.sizes(), " of ", plain.codes.scalar_type());
  const int64_t rows = plain.codes.size(0);
  const int64_t columns = plain.codes.size(1);
  TORCH_CHECK(rows > 0 && columns > 0 && plain.group > 0 && columns % plain.group == 0, "pack: codes ",
              plain.codes.sizes(), " in groups of ", plain.group);
  const int64_t groups = columns / plain.group;
  TORCH_CHECK(is(plain.scales, at::kFloat, {rows, groups}), "pack: scales ", plain.scales.sizes(), " of ", rows,
              " rows of ", groups, " groups");
  TORCH_CHECK(!plain.zeros.defined() || is(plain.zeros, at::kByte, {rows, groups}), "pack: zeros of ", rows,
              " rows of ", groups, " groups");
  TORCH_CHECK(!plain.zeros.defined() ||
                  plain.zeros.max().item<uint8_t>() <= middle(plain.bits) + std::numeric_limits<int8_t>::max(),
              "pack: a zero of ", plain.bits, " bits is too large");
  if (!plain.group_of.defined()) return;
  TORCH_CHECK(is(plain.group_of, at::kInt, {columns}), "pack: a group for each of ", columns, " inputs");
  TORCH_CHECK(plain.group_of.min().item<int32_t>() >= 0 && plain.group_of.max().item<int32_t>() < groups &&
                  at::bincount(plain.group_of, {}, groups).eq(plain.group).all().item<bool>(),
              "pack: each of ", groups, " groups has ", plain.group, " inputs");
}

/// The columns sorted by group, or undefined if they are.
at::Tensor sorted(const at::Tensor& group_of) {
  if (!group_of.defined()) return {};
  at::Tensor order = at::argsort(group_of, /*stable=*/true, /*dim=*/0);
  return at::equal(order, at::arange(order.size(0), at::kLong)) ? at::Tensor() : order;
}

/// Calls run(row, group, where the group's first input of that row lies) for the rows of blocks in parallel.
template <typename Run>
void each_group(const GroupedWeight& weight, const Run& run) {
  const cpu::GroupedMatrix of = matrix(weight);
  const int64_t group_bytes = of.lines() * cpu::kGroupedLineBytes;
  parallel_rows(blocks(weight), kRows * weight.columns, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kRows; row < std::min(end * kRows, weight.rows); ++row) {
      for (int64_t g = 0; g < of.groups; ++g) {
        run(row, g, (row / kRows * of.groups + g) * group_bytes + row % kRows * cpu::grouped_row_bytes(of.container));
      }
    }
  });
}

/// [O, G] → [⌈O/16⌉, G, 16], padded with 0, and back.
at::Tensor to_blocks(const at::Tensor& values, int64_t blocks) {
  at::Tensor padded = at::zeros({blocks * kRows, values.size(1)}, values.options());
  padded.narrow(0, 0, values.size(0)).copy_(values);
  return padded.view({blocks, kRows, values.size(1)}).transpose(1, 2).contiguous();
}
at::Tensor from_blocks(const at::Tensor& values, int64_t rows) {
  return values.transpose(1, 2).reshape({-1, values.size(1)}).narrow(0, 0, rows);
}

/// [256, 8/container]: the values of each byte, lowest bits first. One look-up a byte: not every device shifts bits.
at::Tensor values_of_bytes(int64_t container) {
  const int64_t each = 8 / container;
  at::Tensor table = at::empty({256, each}, at::kFloat);
  auto* to = table.mutable_data_ptr<float>();
  for (int64_t i = 0; i < table.numel(); ++i) {
    const auto code = static_cast<int>((i / each) >> (i % each * container)) % (1 << container);
    to[i] = static_cast<float>(code < middle(static_cast<int>(container)) ? code : code - (1 << container));
  }
  return table;
}

/// T tokens in tiles of nearly equal size.
struct Tiles {
  int64_t tokens;
  int64_t count;

  Tiles(int64_t all, int64_t largest) : tokens(all), count((all + largest - 1) / largest) {}
  [[nodiscard]] int64_t first(int64_t tile) const { return tokens * tile / count; }
  [[nodiscard]] int64_t of(int64_t token) const { return ((token + 1) * count - 1) / tokens; }
};

// Codes that stay in a core's second cache while all tiles pass.
constexpr int64_t kBlocksBytes = 256 << 10;

/// The products of a matrix with x of the type X, kept as T.
template <typename X, typename T>
class CodeProducts {
 public:
  CodeProducts(const at::Tensor& x, const GroupedWeight& weight)
      : weight_(weight),
        matrix_(matrix(weight)),
        tiles_(x.size(0), std::is_same_v<T, float> ? cpu::kGroupedFloatTokens : cpu::kGroupedDotTokens),
        x_(at::empty({x.size(0) * padded_columns()}, x.options().dtype(c10::CppTypeToScalarType<T>::value))),
        sums_(weight.zeros.defined() ? at::empty({x.size(0) * matrix_.groups}, at::kFloat) : at::Tensor()) {
    const X* from = x.const_data_ptr<X>();
    const int64_t* order = weight.order.defined() ? weight.order.const_data_ptr<int64_t>() : nullptr;
    parallel_rows(tiles_.tokens, weight.columns, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const int64_t tile = tiles_.of(token);
        cpu::grouped_pack_input(matrix_, cpu::GroupedInput<X>{from + token * weight.columns, order}, at(tile),
                                token - tiles_.first(tile));
      }
    });
  }

  void write(const at::Tensor& bias, const at::Tensor& y) const {
    const int64_t chunk = std::max<int64_t>(1, kBlocksBytes / matrix_.block_bytes());
    parallel_rows(blocks(weight_), kRows * weight_.columns, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += chunk) {
        const int64_t last = std::min(first + chunk, end);
        for (int64_t tile = 0; tile < tiles_.count; ++tile) {
          for (int64_t block = first; block < last; ++block) write_block(bias, y, tile, block);
        }
      }
    });
  }

 private:
  [[nodiscard]] int64_t padded_columns() const { return matrix_.groups * matrix_.padded_group(); }
  [[nodiscard]] cpu::GroupedTile<T> at(int64_t tile) const {
    const int64_t first = tiles_.first(tile);
    return {.x = x_.mutable_data_ptr<T>() + first * padded_columns(),
            .sums = sums_.defined() ? sums_.mutable_data_ptr<float>() + first * matrix_.groups : nullptr,
            .tokens = tiles_.first(tile + 1) - first};
  }
  void write_block(const at::Tensor& bias, const at::Tensor& y, int64_t tile, int64_t block) const {
    std::array<float, cpu::kGroupedDotTokens * kRows> totals;
    const cpu::GroupedTile<T> of = at(tile);
    cpu::grouped_product(matrix_, block, of, totals.data());
    const int64_t row = block * kRows;
    const float* added = bias.defined() ? bias.const_data_ptr<float>() + row : nullptr;
    X* to = y.mutable_data_ptr<X>() + tiles_.first(tile) * weight_.rows + row;
    for (int64_t t = 0; t < of.tokens; ++t) {
      for (int64_t i = 0; i < std::min(kRows, weight_.rows - row); ++i) {
        to[t * weight_.rows + i] = static_cast<X>(totals[t * kRows + i] + (added == nullptr ? 0.0f : added[i]));
      }
    }
  }

  const GroupedWeight& weight_;
  cpu::GroupedMatrix matrix_;
  Tiles tiles_;
  at::Tensor x_;
  at::Tensor sums_;
};

bool has_dot(const at::Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && has_cpu_products(x) && cpu::has_grouped_dot();
}

at::Tensor multiply_codes(const at::Tensor& x, const GroupedWeight& weight, const at::Tensor& bias) {
  at::Tensor y = at::empty({x.size(0), weight.rows}, x.options());
  const at::Tensor added = bias.defined() ? bias.to(at::kFloat).contiguous() : bias;
  const at::Tensor from = x.contiguous();
  if (has_dot(x)) {
    CodeProducts<c10::BFloat16, c10::BFloat16>(from, weight).write(added, y);
  } else {
    with_element_type(x, [&]<typename X>(X) { CodeProducts<X, float>(from, weight).write(added, y); });
  }
  return y;
}

/// to[order[i]] = from[i] for each row.
template <typename T>
void put_columns(const T* from, T* to, int64_t rows, int64_t columns, const int64_t* order) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < columns; ++i) to[row * columns + order[i]] = from[row * columns + i];
  }
}

/// [O, C] in `type` on the CPU: columns in the inputs' own order, or, without `order`, as they are kept.
at::Tensor expand(const GroupedWeight& weight, at::ScalarType type, const at::Tensor& order) {
  at::Tensor to = at::empty({weight.rows, weight.columns}, type);
  with_element_type(to, [&]<typename T>(T) {
    const cpu::GroupedMatrix of = matrix(weight);
    T* values = to.mutable_data_ptr<T>();
    parallel_rows(blocks(weight), kRows * weight.columns, [&](int64_t begin, int64_t end) {
      std::vector<T> kept(order.defined() ? static_cast<size_t>(kRows * weight.columns) : 0);
      for (int64_t block = begin; block < end; ++block) {
        T* at = values + block * kRows * weight.columns;
        const int64_t rows = std::min(kRows, weight.rows - block * kRows);
        cpu::grouped_expand(of, block, order.defined() ? kept.data() : at, rows);
        if (order.defined()) put_columns(kept.data(), at, rows, weight.columns, order.const_data_ptr<int64_t>());
      }
    });
  });
  return to;
}

// A panel of rows is expanded into a core's second cache and multiplied there.
constexpr int64_t kPanelRows = 4 * kRows;
constexpr int64_t kPanelTokens = 128;
constexpr int64_t kRoundTokens = 32;  // oneDNN compiles a kernel for each number

/// The products of x with panels of a matrix; x [T, C] of bfloat16, T a multiple of kRoundTokens, columns as they are
/// kept.
class PanelProducts {
 public:
  PanelProducts(at::Tensor x, const GroupedWeight& weight)
      : x_(std::move(x)), weight_(weight), matrix_(matrix(weight)) {}

  /// y [at most T, O].
  void write(const at::Tensor& bias, const at::Tensor& y) const {
    std::vector<int64_t> panels((weight_.rows + kPanelRows - 1) / kPanelRows);
    std::iota(panels.begin(), panels.end(), 0);
    share_out<Workspace>(panels, [&](int64_t panel, Workspace& workspace) { write_panel(bias, y, panel, workspace); });
  }

 private:
  struct Workspace {
    std::vector<c10::BFloat16> panel;
    std::vector<float> sums;
  };

  void write_panel(const at::Tensor& bias, const at::Tensor& y, int64_t panel, Workspace& workspace) const {
    const int64_t row = panel * kPanelRows;
    const int64_t first = row / kRows;
    const int64_t width = (std::min(first + kPanelRows / kRows, blocks(weight_)) - first) * kRows;
    workspace.panel.resize(weight_.columns * kPanelRows);
    workspace.sums.resize(kPanelTokens * kPanelRows);
    for (int64_t i = 0; i < width / kRows; ++i) {
      cpu::grouped_expand_pairs(matrix_, first + i, workspace.panel.data() + 2 * kRows * i, 2 * width);
    }
    const float* added = bias.defined() ? bias.const_data_ptr<float>() + row : nullptr;
    const int64_t rows = std::min(width, weight_.rows - row);
    for (int64_t token = 0; token < x_.size(0); token += kPanelTokens) {
      const cpu::Product size = {.m = std::min(kPanelTokens, x_.size(0) - token),
                                 .n = width,
                                 .k = weight_.columns,
                                 .lda = weight_.columns,
                                 .ldb = width,
                                 .ldc = width};
      cpu::multiply(size, x_.const_data_ptr<c10::BFloat16>() + token * weight_.columns, workspace.panel.data(),
                    workspace.sums.data());
      for (int64_t t = 0; t < std::min(size.m, y.size(0) - token); ++t) {
        cpu::grouped_round(workspace.sums.data() + t * width, added,
                           y.mutable_data_ptr<c10::BFloat16>() + (token + t) * weight_.rows + row, rows);
      }
    }
  }

  at::Tensor x_;
  const GroupedWeight& weight_;
  cpu::GroupedMatrix matrix_;
};

bool multiplies_panels(const at::Tensor& x, const GroupedWeight& weight) {
  return x.scalar_type() == at::kBFloat16 && has_cpu_products(x) && x.size(0) <= kMostPanelTokens &&
         weight.group % matrix(weight).line_inputs() == 0;
}

at::Tensor multiply_panels(const at::Tensor& x, const GroupedWeight& weight, const at::Tensor& bias) {
  const int64_t tokens = x.size(0);
  at::Tensor y = at::empty({tokens, weight.rows}, x.options());
  const int64_t rounded = (tokens + kRoundTokens - 1) / kRoundTokens * kRoundTokens;
  PanelProducts(rounded == tokens ? x.contiguous() : at::constant_pad_nd(x, {0, 0, 0, rounded - tokens}), weight)
      .write(bias.defined() ? bias.to(at::kFloat).contiguous() : bias, y);
  return y;
}

void check(const at::Tensor& x, const GroupedWeight& weight, const at::Tensor& bias) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) == weight.columns, "grouped_linear: x ", x.sizes(), " and a weight [",
              weight.rows, ", ", weight.columns, "]");
  TORCH_CHECK(x.device() == weight.codes.device(), "grouped_linear: x on ", x.device(), ", codes on ",
              weight.codes.device());
  TORCH_CHECK(!bias.defined() || bias.sizes() == at::IntArrayRef{weight.rows}, "grouped_linear: bias ", bias.sizes(),
              " of ", weight.rows, " rows");
  TORCH_CHECK(!at::GradMode::is_enabled() || !(x.requires_grad() || (bias.defined() && bias.requires_grad())),
              "grouped_linear has no gradients: lora_linear has");
}

}  // namespace

int64_t GroupedWeight::bytes() const {
  size_t all = 0;
  for (const at::Tensor* part : {&codes, &scales, &zeros, &order}) all += part->defined() ? part->nbytes() : 0;
  return static_cast<int64_t>(all);
}

GroupedWeight pack(const PlainCodes& plain) {
  check(plain);
  const at::Tensor codes = plain.codes.contiguous();
  GroupedWeight weight{.bits = plain.bits,
                       .rows = codes.size(0),
                       .columns = codes.size(1),
                       .group = plain.group,
                       .codes = {},
                       .scales = {},
                       .zeros = {},
                       .order = sorted(plain.group_of)};
  const int middle_code = middle(plain.bits);
  weight.scales = to_blocks(plain.scales, blocks(weight));
  if (plain.zeros.defined() && plain.zeros.ne(middle_code).any().item<bool>()) {
    weight.zeros = to_blocks(plain.zeros.to(at::kShort).sub_(middle_code).to(at::kChar), blocks(weight));
  }
  weight.codes = at::zeros({0}, at::kByte);
  const int64_t block_bytes = matrix(weight).block_bytes();
  weight.codes = at::zeros({blocks(weight) * block_bytes}, at::kByte);

  const std::vector<cpu::GroupedPlace> place = places(weight);
  const int64_t* order = weight.order.defined() ? weight.order.const_data_ptr<int64_t>() : nullptr;
  const auto* from = codes.const_data_ptr<uint8_t>();
  auto* to = weight.codes.mutable_data_ptr<uint8_t>();
  const int mask = (1 << container(plain.bits)) - 1;
  std::atomic<bool> fit = true;
  each_group(weight, [&](int64_t row, int64_t g, int64_t byte) {
    unsigned seen = 0;
    for (int64_t i = 0; i < weight.group; ++i) {
      const int64_t column = g * weight.group + i;
      const int code = from[row * weight.columns + (order == nullptr ? column : order[column])];
      seen |= static_cast<unsigned>(code);
      to[byte + place[i].byte] |= static_cast<uint8_t>(((code - middle_code) & mask) << place[i].bit);
    }
    if (seen >> plain.bits != 0) fit = false;
  });
  TORCH_CHECK(fit, "pack: a code has more than ", plain.bits, " bits");
  return weight;
}

PlainCodes unpack(const GroupedWeight& weight) {
  TORCH_CHECK(weight.codes.is_cpu(), "unpack: on the CPU");
  PlainCodes plain{.bits = weight.bits,
                   .group = weight.group,
                   .codes = at::empty({weight.rows, weight.columns}, at::kByte),
                   .scales = from_blocks(weight.scales, weight.rows).contiguous(),
                   .zeros = {},
                   .group_of = {}};
  const int middle_code = middle(weight.bits);
  if (weight.zeros.defined()) {
    plain.zeros = from_blocks(weight.zeros, weight.rows).to(at::kShort).add_(middle_code).to(at::kByte);
  }
  if (weight.order.defined()) {
    plain.group_of = at::empty({weight.columns}, at::kInt);
    plain.group_of.index_copy_(0, weight.order,
                               at::arange(weight.columns, at::kInt).floor_divide_(weight.group).to(at::kInt));
  }
  const std::vector<cpu::GroupedPlace> place = places(weight);
  const int64_t* order = weight.order.defined() ? weight.order.const_data_ptr<int64_t>() : nullptr;
  const auto* from = weight.codes.const_data_ptr<uint8_t>();
  auto* to = plain.codes.mutable_data_ptr<uint8_t>();
  const int mask = (1 << weight.bits) - 1;  // adding the middle carries into the bits above
  each_group(weight, [&](int64_t row, int64_t g, int64_t byte) {
    for (int64_t i = 0; i < weight.group; ++i) {
      const int64_t column = g * weight.group + i;
      to[row * weight.columns + (order == nullptr ? column : order[column])] =
          static_cast<uint8_t>(((from[byte + place[i].byte] >> place[i].bit) + middle_code) & mask);
    }
  });
  return plain;
}

at::Tensor dequantize(const GroupedWeight& weight, at::ScalarType type) {
  const bool has_kernel = type == at::kFloat || type == at::kBFloat16;
  return has_kernel && has_cpu_kernel(weight.scales) ? expand(weight, type, weight.order)
                                                     : composite::dequantize(weight, type);
}

at::Tensor composite::dequantize(const GroupedWeight& weight, at::ScalarType type) {
  const int64_t bits = container(weight.bits);
  const at::Tensor table = to_device(values_of_bytes(bits), weight.scales.device());
  const at::Tensor looked_up = table.index_select(0, weight.codes.to(at::kInt));
  const int64_t count = groups(weight);
  at::Tensor values;  // [blocks, 16, G, padded group]
  if (bits == 8) {
    values = looked_up.view({blocks(weight), count, -1, kRows, 2}).permute({0, 3, 1, 2, 4});
  } else {  // a word's bytes: two of even inputs, two of odd ones
    values = looked_up.view({blocks(weight), count, -1, kRows, 2, 2, 8 / bits}).permute({0, 3, 1, 2, 5, 6, 4});
  }
  values = values.reshape({-1, count, values.numel() / (blocks(weight) * kRows * count)});
  values = values.narrow(0, 0, weight.rows).narrow(2, 0, weight.group);
  if (weight.zeros.defined()) values = values - from_blocks(weight.zeros.to(at::kFloat), weight.rows).unsqueeze(2);
  values = (values * from_blocks(weight.scales, weight.rows).unsqueeze(2)).to(type).view({weight.rows, weight.columns});
  return weight.order.defined() ? values.index_select(1, at::argsort(weight.order)) : values;
}

bool multiplies_codes(const at::Tensor& x) {
  if (!has_cpu_kernel(x)) return false;
  if (x.scalar_type() == at::kFloat) return x.size(0) <= kMostFloatTokens;
  return !cpu::has_amx() || x.size(0) <= kMostTokensBesideAmx;
}

at::Tensor grouped_linear(const at::Tensor& x, const GroupedWeight& weight, const at::Tensor& bias) {
  RECORD_FUNCTION("fettle::grouped_linear", c10::ArrayRef<const c10::IValue>());
  check(x, weight, bias);
  if (multiplies_codes(x)) return multiply_codes(x, weight, bias);
  if (!has_cpu_kernel(x)) return composite::grouped_linear(x, weight, bias);
  const at::Tensor kept = weight.order.defined() ? x.index_select(1, weight.order) : x;
  if (multiplies_panels(x, weight)) return multiply_panels(kept, weight, bias);
  return at::linear(kept, expand(weight, x.scalar_type(), /*order=*/{}), bias);
}

at::Tensor composite::grouped_linear(const at::Tensor& x, const GroupedWeight& weight, const at::Tensor& bias) {
  return at::linear(x, composite::dequantize(weight, x.scalar_type()), bias);
}

}  // namespace fettle::ops
