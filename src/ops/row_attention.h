// SPDX-License-Identifier: Apache-2.0
/// Attention over rows of equal length, for a device that compiles its graphs for one shape (hpu): what the documents
/// of a stream are is then data, not shape. Work and memory grow with the row's length squared.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>

#include "ops/attention.h"

namespace fettle::ops {

/// Which keys the queries of each row see. B rows of L tokens, T = B·L.
class RowMasks {
 public:
  /// `documents` [T]: a number for each token, another one in the document that follows; on the device of the masks.
  /// Undefined: every row is one document, with what fills the row after it, which nobody reads.
  RowMasks(int64_t row_length, at::Tensor documents, int64_t rows, at::Device device)
      : row_length_(row_length), documents_(std::move(documents)), rows_(rows), device_(device) {}

  [[nodiscard]] int64_t row_length() const { return row_length_; }
  [[nodiscard]] int64_t rows() const { return rows_; }
  /// bool [B or 1, 1, L, L], true where query i sees key j; undefined where it sees every key up to its own. Made at
  /// the first call for a window (0: none), and the same tensor from then on.
  const at::Tensor& visible(int64_t window);
  /// The same as what is added to scores: 0 where visible, else the lowest number of `type`, and not -∞: where a part
  /// of the keys is hidden altogether, a softmax by parts would subtract that from itself.
  const at::Tensor& added(int64_t window, at::ScalarType type);

 private:
  int64_t row_length_;
  at::Tensor documents_;
  int64_t rows_;
  at::Device device_;
  std::map<int64_t, at::Tensor> visible_;
  std::map<int64_t, at::Tensor> added_;
};

/// As ops::attention: query [T, H, D]; key, value [T, K, D]; T = B·L. Returns [T, H, D].
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionSpec& spec,
                     RowMasks& masks);

namespace composite {
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionSpec& spec,
                     RowMasks& masks);
}

}  // namespace fettle::ops
