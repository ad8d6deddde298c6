// SPDX-License-Identifier: Apache-2.0
#include "ops/row_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>

#include <limits>

#include "ops/dispatch.h"
#include "ops/hpu/attention.h"

namespace fettle::ops {
namespace {

/// [T, N, D] → [B, K, N/K, L, D]: heads by the key head that they read.
at::Tensor by_head(const at::Tensor& stream, const RowMasks& masks, int64_t key_heads) {
  return stream.view({masks.rows(), masks.row_length(), key_heads, stream.size(1) / key_heads, stream.size(2)})
      .permute({0, 2, 3, 1, 4});
}

}  // namespace

const at::Tensor& RowMasks::visible(int64_t window) {
  if (window >= row_length_) window = 0;
  if (window == 0 && !documents_.defined()) {
    static const at::Tensor kAll;
    return kAll;
  }
  at::Tensor& mask = visible_[window];
  if (mask.defined()) return mask;
  const at::Tensor place = at::arange(row_length_, at::TensorOptions().dtype(at::kInt).device(device_));
  const at::Tensor distance = place.unsqueeze(1) - place.unsqueeze(0);  // [L, L]: query - key
  mask = distance >= 0;
  if (window > 0) mask = mask.logical_and(distance < window);
  mask = mask.view({1, 1, row_length_, row_length_});
  if (documents_.defined()) {
    const at::Tensor documents = documents_.view({rows_, 1, row_length_, 1});
    mask = mask.logical_and(documents == documents.transpose(2, 3));
  }
  return mask;
}

const at::Tensor& RowMasks::added(int64_t window, at::ScalarType type) {
  const at::Tensor& seen = visible(window);
  if (!seen.defined()) return seen;
  at::Tensor& mask = added_[window];
  if (!mask.defined() || mask.scalar_type() != type) {
    const double lowest = type == at::kBFloat16 ? static_cast<double>(std::numeric_limits<c10::BFloat16>::lowest())
                                                : std::numeric_limits<float>::lowest();
    mask = at::zeros(seen.sizes(), seen.options().dtype(type)).masked_fill(seen.logical_not(), lowest);
  }
  return mask;
}

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionSpec& spec,
                     RowMasks& masks) {
  RECORD_FUNCTION("fettle::attention", c10::ArrayRef<const c10::IValue>());
  TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && key.sizes() == value.sizes() && query.size(2) == key.size(2) &&
                  key.size(1) > 0 && query.size(1) % key.size(1) == 0 && query.size(0) == key.size(0) &&
                  query.size(0) == masks.rows() * masks.row_length(),
              "attention: query ", query.sizes(), ", key ", key.sizes(), ", value ", value.sizes(), " of ",
              masks.rows(), " rows of ", masks.row_length(), " tokens");
  if (!hpu::has_attention(query)) return composite::attention(query, key, value, spec, masks);
  const at::Tensor mixed =
      hpu::attention({by_head(query, masks, key.size(1)), by_head(key, masks, key.size(1)),
                      by_head(value, masks, key.size(1)), masks.added(spec.window, query.scalar_type()), spec.scale});
  return mixed.permute({0, 3, 1, 2, 4}).contiguous().view(query.sizes());
}

at::Tensor composite::attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                const AttentionSpec& spec, RowMasks& masks) {
  const int64_t length = masks.row_length();
  at::Tensor visible = masks.visible(spec.window);  // [B or 1, 1, L, L]
  if (!visible.defined()) {
    const at::Tensor place = at::arange(length, at::TensorOptions().dtype(at::kInt).device(query.device()));
    visible = (place.unsqueeze(1) >= place.unsqueeze(0)).view({1, 1, length, length});
  }
  const int64_t key_heads = key.size(1);
  const at::Tensor keys = by_head(key, masks, key_heads);  // [B, K, 1, L, D]
  const at::Tensor scores =
      by_head(query, masks, key_heads).matmul(keys.transpose(3, 4)).mul(spec.scale);  // [B, K, H/K, L, L]
  const at::Tensor hidden = visible.unsqueeze(1).logical_not();
  const at::Tensor weights = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity()).softmax(-1);
  const at::Tensor mixed = weights.matmul(by_head(value, masks, key_heads));  // [B, K, H/K, L, D]
  return mixed.permute({0, 3, 1, 2, 4}).contiguous().view(query.sizes());
}

}  // namespace fettle::ops
