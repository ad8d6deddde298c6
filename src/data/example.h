// SPDX-License-Identifier: Apache-2.0
/// One tokenized document with its targets.
#pragma once

#include <cstdint>
#include <vector>

namespace fettle::data {

/// The label of a token that is not a target (Hugging Face's and torch's convention).
inline constexpr int32_t kIgnore = -100;

/// A document as Hugging Face stores it: labels[t] is input_ids[t] or kIgnore, not shifted. Both have the same length.
struct Example {
  std::vector<int32_t> input_ids;
  std::vector<int32_t> labels;
};

}  // namespace fettle::data
