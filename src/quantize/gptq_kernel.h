// SPDX-License-Identifier: Apache-2.0
/// The inner loop of GPTQ on a CPU: one block of columns of one row.
#pragma once

#include <cstdint>

namespace fettle::quantize::cpu {

/// n columns of a block, of rows of C columns.
struct GptqBlock {
  int64_t first;          ///< column that the block begins with
  int64_t count;          ///< n
  int64_t columns;        ///< C
  int64_t group;          ///< columns of a group
  const float* factor;    ///< [n, n]: the rows and columns of the block in the upper factor of the inverse Hessian
  const int32_t* groups;  ///< [C]: the group of each column
  bool finds_ranges;      ///< a group's range is found when its first column is reached
  bool symmetric;
  int bits;
  int lowest_zero;
  float (*storable)(float scale);  ///< as the layout stores scales
};

/// A row of everything.
struct GptqRow {
  float* weight;   ///< [C] read and changed
  float* scales;   ///< [G]
  float* zeros;    ///< [G]
  uint8_t* codes;  ///< [C]
  float* errors;   ///< [n]: what the columns after the block have to make up for
};

/// Rounds the block's columns in turn and makes up for each one's error within the block.
void gptq_block(const GptqBlock& block, const GptqRow& row);

}  // namespace fettle::quantize::cpu
