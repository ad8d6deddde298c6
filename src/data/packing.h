// SPDX-License-Identifier: Apache-2.0
/// Packing documents into rows of a fixed number of tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fettle::data {

/// Items row after row: row r holds items[offsets[r]] … items[offsets[r+1]-1].
struct Packing {
  std::vector<int64_t> items;
  std::vector<int64_t> offsets;  // [rows + 1]

  [[nodiscard]] int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
  /// Row order[0] first, then order[1] …
  [[nodiscard]] Packing reordered(std::span<const int64_t> order) const;
};

/// Best fit decreasing, as TRL's "bfd": the longest item first, each into the fullest row that still takes it; of equal
/// lengths the earlier item, of equally full rows the one that has been so full for longest. O(n + capacity) time:
/// lengths are counting-sorted and the free space of rows is a bit set. Items in a row ascend, rows ascend by their
/// first item. Every length is within 0 … capacity.
Packing pack_best_fit(std::span<const int64_t> lengths, int64_t capacity);

}  // namespace fettle::data
