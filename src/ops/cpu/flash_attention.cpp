// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/flash_attention.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/brgemm.h"
#include "ops/cpu/kernels.h"

// Head dimensions are padded with zeros to a multiple of 16, rows of a block to a multiple of 32.

namespace fettle::ops::cpu {
namespace {

constexpr int64_t kRowStep = 32;
constexpr int64_t kBlock = kFlashBlock;

int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}
int64_t padded_dim(const FlashShape& shape) {
  return round_up(shape.head_dim, 16);
}
int64_t blocks_of(const FlashShape& shape) {
  return (shape.length + kBlock - 1) / kBlock;
}
/// Rows that block `block` really has.
int64_t rows_of(const FlashShape& shape, int64_t block) {
  return std::min(kBlock, shape.length - block * kBlock);
}

/// The first key block that query block `block` sees.
int64_t first_key_block(const FlashShape& shape, int64_t block) {
  return shape.window > 0 ? std::max<int64_t>(0, block * kBlock - shape.window + 1) / kBlock : 0;
}

template <typename T>
HeadRows<const T> block_rows(HeadRows<const T> rows, int64_t block) {
  return {rows.data + block * kBlock * rows.stride, rows.stride};
}

template <typename T>
T* grow(std::vector<T>& buffer, int64_t count) {
  if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(static_cast<size_t>(count));
  return buffer.data();
}

}  // namespace

int64_t packed_elements(const FlashShape& shape) {
  return blocks_of(shape) * kBlock * padded_dim(shape);
}

template <typename T>
void pack_keys(HeadRows<const T> key, HeadRows<const T> value, const FlashShape& shape, PackedKeys<T> packed) {
  const int64_t dim = padded_dim(shape);
  for (int64_t block = 0; block < blocks_of(shape); ++block) {
    const int64_t at = block * kBlock * dim;
    const int64_t rows = rows_of(shape, block);
    copy_rows(block_rows(key, block).data, packed.keys + at, {rows, kBlock, shape.head_dim, dim, key.stride});
    transpose_rows(block_rows(value, block).data, packed.values + at,
                   {rows, kBlock, shape.head_dim, dim, value.stride});
  }
}

template <typename T>
void flash_forward(const FlashHead<T>& head, const FlashShape& shape, int64_t block, FlashWorkspace<T>& workspace) {
  constexpr float kBelowAll = -1e30f;  // finite: the difference of two is a number
  const int64_t dim = padded_dim(shape);
  const int64_t real = rows_of(shape, block);
  const int64_t columns = round_up(real, kRowStep);
  T* queries = grow(workspace.elements, kBlock * (dim + 2 * kBlock));
  float* sums = grow(workspace.sums, kBlock * (kBlock + dim + 3));
  float* mixed = sums + kBlock;  // [D, B]
  const AttentionSoftmaxStep<T> softmax{.scores = mixed + kBlock * dim,
                                        .largest = mixed + kBlock * (dim + kBlock),
                                        .sums = sums,
                                        .factors = mixed + kBlock * (dim + kBlock + 1),
                                        .weights = queries + kBlock * dim,
                                        .packed = queries + kBlock * (dim + kBlock)};
  const PaddedRows all{dim, dim, columns, columns, kBlock};
  pack_right_transposed(block_rows(head.query, block).data, queries,
                        {real, kBlock, shape.head_dim, dim, head.query.stride});
  std::fill_n(softmax.largest, kBlock, kBelowAll);
  std::fill_n(sums, kBlock, 0.0f);
  const int64_t first = first_key_block(shape, block);
  for (int64_t keys = first; keys <= block; ++keys) {
    const int64_t at = keys * kBlock * dim;
    const int64_t rows = round_up(rows_of(shape, keys), kRowStep);
    multiply({rows, columns, dim, dim, kBlock, kBlock}, head.packed.keys + at, queries, softmax.scores);
    attention_softmax_step(softmax, {rows, columns, kBlock, real, (block - keys) * kBlock, shape.window, shape.scale});
    if (keys > first) attention_scale_columns(mixed, softmax.factors, all);
    multiply({dim, columns, rows, kBlock, kBlock, kBlock, keys > first}, head.packed.values + at, softmax.packed,
             mixed);
  }
  for (int64_t i = 0; i < columns; ++i) softmax.factors[i] = 1.0f / sums[i];
  attention_scale_columns(mixed, softmax.factors, all);
  store_transposed(mixed, head.output.data + block * kBlock * head.output.stride,
                   {real, kBlock, shape.head_dim, dim, head.output.stride});
  for (int64_t i = 0; i < real; ++i) head.log_sums[block * kBlock + i] = softmax.largest[i] + std::log2(sums[i]);
}

namespace {

/// What the backward of one query head needs of its queries, block by block.
template <typename T>
struct PackedQueries {
  T* by_dim;        ///< Qᵀ, right operand of Sᵀ = K·Qᵀ
  T* by_row;        ///< Q, right operand of dK = dSᵀ·Q
  T* d_output_dim;  ///< the same of dO, for dPᵀ = V·dOᵀ
  T* d_output_row;  ///< and for dV = Pᵀ·dO
  float* offsets;   ///< Σ dO·O of every query; 0 for what is none
  float* log_sums;  ///< likewise
  float* d_query;   ///< dQᵀ of every block: [D, B]
};

template <typename T>
PackedQueries<T> pack_queries(const FlashGradient<T>& arrays, const FlashShape& shape, FlashWorkspace<T>& workspace) {
  const int64_t dim = padded_dim(shape);
  const int64_t all = packed_elements(shape);
  const int64_t rows = blocks_of(shape) * kBlock;
  // Behind these: K, V and Kᵀ of a block, Pᵀ, dSᵀ and the latter once more as a right operand.
  T* elements = grow(workspace.elements, 4 * all + 3 * kBlock * (dim + kBlock));
  float* sums = grow(workspace.sums, all + 2 * rows + 2 * kBlock * (dim + kBlock));
  PackedQueries<T> packed{.by_dim = elements,
                          .by_row = elements + all,
                          .d_output_dim = elements + 2 * all,
                          .d_output_row = elements + 3 * all,
                          .offsets = sums + all,
                          .log_sums = sums + all + rows,
                          .d_query = sums};
  std::fill_n(packed.offsets, 2 * rows, 0.0f);
  std::copy_n(arrays.log_sums, shape.length, packed.log_sums);
  std::fill_n(packed.d_query, all, 0.0f);
  for (int64_t block = 0; block < blocks_of(shape); ++block) {
    const int64_t at = block * kBlock * dim;
    const int64_t real = rows_of(shape, block);
    const PaddedRows size{real, kBlock, shape.head_dim, dim, arrays.query.stride};
    const PaddedRows d_size{real, kBlock, shape.head_dim, dim, arrays.d_output.stride};
    const T* query = block_rows(arrays.query, block).data;
    const T* d_output = block_rows(arrays.d_output, block).data;
    pack_right_transposed(query, packed.by_dim + at, size);
    pack_right(query, packed.by_row + at, size);
    pack_right_transposed(d_output, packed.d_output_dim + at, d_size);
    pack_right(d_output, packed.d_output_row + at, d_size);
    const T* output = block_rows(arrays.output, block).data;
    attention_dots(d_output, output, packed.offsets + block * kBlock,
                   {real, shape.head_dim, arrays.d_output.stride, arrays.output.stride});
  }
  return packed;
}

/// The last query block that sees any key of `keys`.
int64_t last_query_block(const FlashShape& shape, int64_t keys) {
  const int64_t last = blocks_of(shape) - 1;
  if (shape.window <= 0) return last;
  return std::min(last, (keys * kBlock + kBlock - 1 + shape.window - 1) / kBlock);
}

}  // namespace

template <typename T>
void flash_backward(const FlashGradient<T>& arrays, const FlashShape& shape, FlashWorkspace<T>& workspace) {
  const int64_t dim = padded_dim(shape);
  const PackedQueries<T> queries = pack_queries(arrays, shape, workspace);
  T* key = queries.d_output_row + packed_elements(shape);
  T* value = key + kBlock * dim;
  T* key_transposed = value + kBlock * dim;
  T* weights = key_transposed + kBlock * dim;
  T* d_scores = weights + kBlock * kBlock;
  T* d_scores_packed = d_scores + kBlock * kBlock;
  float* scores = queries.log_sums + blocks_of(shape) * kBlock;
  float* d_weights = scores + kBlock * kBlock;
  float* d_key = d_weights + kBlock * kBlock;
  float* d_value = d_key + kBlock * dim;
  for (int64_t keys = 0; keys < blocks_of(shape); ++keys) {
    const int64_t real = rows_of(shape, keys);
    const int64_t rows = round_up(real, kRowStep);
    const PaddedRows size{real, rows, shape.head_dim, dim, arrays.key.stride};
    copy_rows(block_rows(arrays.key, keys).data, key, size);
    copy_rows(block_rows(arrays.value, keys).data, value, {real, rows, shape.head_dim, dim, arrays.value.stride});
    transpose_rows(key, key_transposed, {rows, kBlock, dim, dim, dim});
    for (int64_t block = keys; block <= last_query_block(shape, keys); ++block) {
      const int64_t at = block * kBlock * dim;
      const int64_t count = rows_of(shape, block);
      const int64_t columns = round_up(count, kRowStep);
      const bool add = block > keys;
      multiply({rows, columns, dim, dim, kBlock, kBlock}, key, queries.by_dim + at, scores);
      multiply({rows, columns, dim, dim, kBlock, kBlock}, value, queries.d_output_dim + at, d_weights);
      attention_gradient_step({scores, d_weights, queries.log_sums + block * kBlock, queries.offsets + block * kBlock,
                               weights, d_scores, d_scores_packed},
                              {rows, columns, kBlock, count, (block - keys) * kBlock, shape.window, shape.scale});
      multiply({rows, dim, columns, kBlock, dim, dim, add}, weights, queries.d_output_row + at, d_value);
      multiply({rows, dim, columns, kBlock, dim, dim, add}, d_scores, queries.by_row + at, d_key);
      multiply({dim, columns, rows, kBlock, kBlock, kBlock, true}, key_transposed, d_scores_packed,
               queries.d_query + at);
    }
    for (int64_t row = 0; row < real; ++row) {
      const int64_t to = (keys * kBlock + row) * shape.head_dim;
      std::copy_n(d_key + row * dim, shape.head_dim, arrays.d_key + to);
      std::copy_n(d_value + row * dim, shape.head_dim, arrays.d_value + to);
    }
  }
  for (int64_t block = 0; block < blocks_of(shape); ++block) {
    store_transposed(queries.d_query + block * kBlock * dim,
                     arrays.d_query.data + block * kBlock * arrays.d_query.stride,
                     {rows_of(shape, block), kBlock, shape.head_dim, dim, arrays.d_query.stride});
  }
}

#define FETTLE_INSTANTIATE(T)                                                                          \
  template void pack_keys<T>(HeadRows<const T>, HeadRows<const T>, const FlashShape&, PackedKeys<T>);  \
  template void flash_forward<T>(const FlashHead<T>&, const FlashShape&, int64_t, FlashWorkspace<T>&); \
  template void flash_backward<T>(const FlashGradient<T>&, const FlashShape&, FlashWorkspace<T>&);
FETTLE_INSTANTIATE(float)
FETTLE_INSTANTIATE(BFloat16)

}  // namespace fettle::ops::cpu
