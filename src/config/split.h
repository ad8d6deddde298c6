// SPDX-License-Identifier: Apache-2.0
/// Split expressions of Hugging Face `datasets`: train, test[:100], train[10%:20%].
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace fettle::config {

struct SplitExpression {
  std::string text;  ///< as it was written
  std::string name;
  std::optional<int64_t> from;  ///< a record, or a percentage; negative: counted from the end
  std::optional<int64_t> to;
  bool is_percent = false;

  [[nodiscard]] bool is_slice() const { return from || to; }
};

/// Throws Error{kUsage} with `option` for anything else, sums of splits included.
SplitExpression parse_split(const std::string& text, const std::string& option);

struct RecordRange {
  int64_t begin = 0;
  int64_t end = 0;
};

/// The records of a split of so many, as `datasets` counts them: a bound beyond the end is the end, a percentage is
/// rounded to the nearest record, halves to the even one.
RecordRange records_of(const SplitExpression& split, int64_t records);

}  // namespace fettle::config
