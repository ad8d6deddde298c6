// SPDX-License-Identifier: Apache-2.0
#include "data/packing.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace fettle::data {
namespace {

constexpr int64_t kNoRow = -1;

/// A set of integers in [0, size) that finds the least member not below a bound: a bit each, and a bit a word above it.
class IntegerSet {
 public:
  explicit IntegerSet(int64_t size) {
    for (auto words = static_cast<size_t>(size); levels_.empty() || levels_.back().size() > 1;) {
      words = words / 64 + 1;
      levels_.emplace_back(words, 0);
    }
  }

  void insert(int64_t value) {
    auto bit = static_cast<size_t>(value);
    for (auto& level : levels_) {
      level[bit / 64] |= uint64_t{1} << (bit % 64);
      bit /= 64;
    }
  }

  void erase(int64_t value) {
    auto bit = static_cast<size_t>(value);
    for (auto& level : levels_) {
      level[bit / 64] &= ~(uint64_t{1} << (bit % 64));
      if (level[bit / 64] != 0) return;
      bit /= 64;
    }
  }

  [[nodiscard]] int64_t least_from(int64_t bound) const {
    auto bit = static_cast<size_t>(bound);
    for (size_t level = 0; level < levels_.size(); ++level) {
      if (bit / 64 >= levels_[level].size()) return kNoRow;
      const uint64_t word = levels_[level][bit / 64] >> (bit % 64);
      if (word != 0) {
        bit += static_cast<size_t>(std::countr_zero(word));
        return descend(level, bit);
      }
      bit = bit / 64 + 1;
    }
    return kNoRow;
  }

 private:
  [[nodiscard]] int64_t descend(size_t level, size_t bit) const {
    for (; level > 0; --level) bit = bit * 64 + static_cast<size_t>(std::countr_zero(levels_[level - 1][bit]));
    return static_cast<int64_t>(bit);
  }

  std::vector<std::vector<uint64_t>> levels_;  // [0]: members; [k+1]: words of [k] that are not zero
};

/// Rows with the same free space, first in first out, for every space at once: linked lists in three arrays.
class OpenRows {
 public:
  explicit OpenRows(int64_t capacity)
      : first_(static_cast<size_t>(capacity) + 1, kNoRow), last_(first_), spaces_(capacity + 1) {}

  /// Takes the row with the least space that is at least `length` out; kNoRow if there is none. Sets its `space`.
  int64_t take(int64_t length, int64_t& space) {
    space = spaces_.least_from(length);
    if (space == kNoRow) return kNoRow;
    auto& first = first_[static_cast<size_t>(space)];
    const int64_t row = first;
    first = next_[static_cast<size_t>(row)];
    if (first == kNoRow) spaces_.erase(space);
    return row;
  }

  void put(int64_t row, int64_t space) {
    if (static_cast<size_t>(row) >= next_.size()) next_.resize(static_cast<size_t>(row) + 1, kNoRow);
    next_[static_cast<size_t>(row)] = kNoRow;
    const auto s = static_cast<size_t>(space);
    if (first_[s] == kNoRow) {
      first_[s] = row;
      spaces_.insert(space);
    } else {
      next_[static_cast<size_t>(last_[s])] = row;
    }
    last_[s] = row;
  }

 private:
  std::vector<int64_t> first_;
  std::vector<int64_t> last_;
  std::vector<int64_t> next_;  // by row
  IntegerSet spaces_;
};

/// The positions of `keys` (0 … limit) in stable ascending order.
std::vector<int64_t> counting_sort(std::span<const int64_t> keys, int64_t limit) {
  std::vector<int64_t> begins(static_cast<size_t>(limit) + 2, 0);
  for (const int64_t key : keys) ++begins[static_cast<size_t>(key) + 1];
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  std::vector<int64_t> order(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    order[static_cast<size_t>(begins[static_cast<size_t>(keys[i])]++)] = static_cast<int64_t>(i);
  }
  return order;
}

/// Items by row, from the row of each item: rows renumbered by their first item.
Packing gather(std::vector<int64_t> row_of, int64_t rows) {
  std::vector<int64_t> number(static_cast<size_t>(rows), kNoRow);
  int64_t seen = 0;
  Packing packing;
  packing.offsets.assign(static_cast<size_t>(rows) + 1, 0);
  for (int64_t& row : row_of) {
    int64_t& renamed = number[static_cast<size_t>(row)];
    if (renamed == kNoRow) renamed = seen++;
    row = renamed;
    ++packing.offsets[static_cast<size_t>(row) + 1];
  }
  std::partial_sum(packing.offsets.begin(), packing.offsets.end(), packing.offsets.begin());
  packing.items = counting_sort(row_of, rows);
  return packing;
}

}  // namespace

Packing Packing::reordered(std::span<const int64_t> order) const {
  Packing result;
  result.items.reserve(items.size());
  result.offsets.push_back(0);
  for (const int64_t row : order) {
    const auto begin = items.begin() + offsets[static_cast<size_t>(row)];
    const auto end = items.begin() + offsets[static_cast<size_t>(row) + 1];
    result.items.insert(result.items.end(), begin, end);
    result.offsets.push_back(static_cast<int64_t>(result.items.size()));
  }
  return result;
}

Packing pack_best_fit(std::span<const int64_t> lengths, int64_t capacity) {
  std::vector<int64_t> free_after(lengths.size());  // sorting these ascending is sorting the lengths descending, stably
  std::transform(lengths.begin(), lengths.end(), free_after.begin(),
                 [capacity](int64_t length) { return capacity - length; });
  std::vector<int64_t> row_of(lengths.size());
  OpenRows open(capacity);
  int64_t rows = 0;
  for (const int64_t item : counting_sort(free_after, capacity)) {
    const int64_t length = lengths[static_cast<size_t>(item)];
    int64_t space = 0;
    int64_t row = open.take(length, space);
    if (row == kNoRow) {
      row = rows++;
      space = capacity;
    }
    row_of[static_cast<size_t>(item)] = row;
    open.put(row, space - length);
  }
  return gather(std::move(row_of), rows);
}

}  // namespace fettle::data
