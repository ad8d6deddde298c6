// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>

namespace fettle::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A run of queries and the keys that any of them sees. A document no longer than the window is one segment; a longer
// one becomes several, so that work and masks grow with length × window and not with the square of the length.
struct Segment {
  int64_t query;
  int64_t queries;
  int64_t key;
  int64_t keys;
  bool causal;  // keys and queries are the same tokens and the window does not matter: no mask is needed
};

constexpr int64_t kLeastBlock = 256;  // queries of a segment; tiny windows would make tiny matrix products

void append_segments(int64_t begin, int64_t end, int64_t window, std::vector<Segment>& segments) {
  if (begin == end) {
    return;
  }
  if (window == 0 || end - begin <= window) {
    segments.push_back({begin, end - begin, begin, end - begin, /*causal=*/true});
    return;
  }
  const int64_t block = std::max(window, kLeastBlock);
  for (int64_t query = begin; query < end; query += block) {
    const int64_t queries = std::min(block, end - query);
    const int64_t key = std::max(begin, query - window + 1);
    segments.push_back({query, queries, key, query + queries - key, key == query && queries <= window});
  }
}

std::vector<Segment> segments_of(const std::vector<int32_t>& cu_seqlens, int64_t window) {
  std::vector<Segment> segments;
  for (size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    append_segments(cu_seqlens[i], cu_seqlens[i + 1], window, segments);
  }
  return segments;
}

// 0 where query i sees key j, -inf elsewhere. Query i stands at key i + (keys - queries).
at::Tensor additive_mask(const Segment& segment, int64_t window, const at::TensorOptions& options) {
  const int64_t shift = segment.keys - segment.queries;
  at::Tensor seen = at::ones({segment.queries, segment.keys}, options.dtype(at::kBool)).tril(shift);
  if (window > 0) {
    seen = seen.triu(shift - window + 1);
  }
  return at::zeros({segment.queries, segment.keys}, options)
      .masked_fill_(seen.logical_not(), -std::numeric_limits<double>::infinity());
}

// Masks of consecutive segments of a long document are equal; this makes one of them.
class MaskCache {
 public:
  MaskCache(int64_t window, at::TensorOptions options) : window_(window), options_(options) {}
  std::optional<at::Tensor> get(const Segment& segment) {
    if (segment.causal) {
      return std::nullopt;
    }
    if (!mask_.defined() || mask_.size(0) != segment.queries || mask_.size(1) != segment.keys) {
      mask_ = additive_mask(segment, window_, options_);
    }
    return mask_;
  }

 private:
  int64_t window_;
  at::TensorOptions options_;
  at::Tensor mask_;
};

// torch's CPU flash kernel takes [batch, heads, tokens, D] with any strides but the last. Grouped queries need no
// repeated keys: the key heads are the batch, the queries of a group the heads, and a key head is expanded with stride
// 0.
at::Tensor query_view(const at::Tensor& query, int64_t begin, int64_t count, int64_t key_heads) {
  return query.narrow(0, begin, count)
      .view({count, key_heads, query.size(1) / key_heads, query.size(2)})
      .permute({1, 2, 0, 3});  // [K, G, L, D]
}
at::Tensor key_view(const at::Tensor& key, const Segment& segment, int64_t group) {
  return key.narrow(0, segment.key, segment.keys)
      .permute({1, 0, 2})
      .unsqueeze(1)
      .expand({-1, group, -1, -1});  // [K, G, S, D]
}

class FlashAttention : public torch::autograd::Function<FlashAttention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, AttentionSpec spec, const std::vector<Segment>& segments) {
    const int64_t key_heads = key.size(1);
    const int64_t group = query.size(1) / key_heads;
    at::Tensor output = at::empty_like(query);  // [T, H, D]
    at::Tensor log_sums =
        at::empty({query.size(0), query.size(1), 1},
                  query.options().dtype(query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
    MaskCache masks(spec.window, query.options());
    for (const Segment& segment : segments) {
      const auto [part, log_sum] = at::_scaled_dot_product_flash_attention_for_cpu(
          query_view(query, segment.query, segment.queries, key_heads), key_view(key, segment, group),
          key_view(value, segment, group), /*dropout_p=*/0.0, segment.causal, masks.get(segment), spec.scale);
      query_view(output, segment.query, segment.queries, key_heads).copy_(part);
      query_view(log_sums, segment.query, segment.queries, key_heads).copy_(log_sum.unsqueeze(3));
    }
    context->save_for_backward({query, key, value, output, log_sums});
    context->saved_data["scale"] = spec.scale;
    context->saved_data["window"] = spec.window;
    std::vector<int64_t> flat;
    for (const Segment& segment : segments) {
      flat.insert(flat.end(), {segment.query, segment.queries, segment.key, segment.keys, segment.causal ? 1 : 0});
    }
    context->saved_data["segments"] = flat;
    return output;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &query = saved[0], &key = saved[1], &value = saved[2], &output = saved[3], &log_sums = saved[4];
    const std::vector<int64_t> flat = context->saved_data["segments"].toIntVector();
    const double scale = context->saved_data["scale"].toDouble();
    const int64_t key_heads = key.size(1);
    const int64_t group = query.size(1) / key_heads;
    const at::Tensor d_output = gradients[0].contiguous();
    at::Tensor d_query = at::empty_like(query);
    at::Tensor d_key = at::zeros_like(key);
    at::Tensor d_value = at::zeros_like(value);
    MaskCache masks(context->saved_data["window"].toInt(), query.options());
    for (size_t i = 0; i < flat.size(); i += 5) {
      const Segment segment{flat[i], flat[i + 1], flat[i + 2], flat[i + 3], flat[i + 4] != 0};
      const auto queries = [&](const at::Tensor& of) {
        return query_view(of, segment.query, segment.queries, key_heads);
      };
      const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          queries(d_output), queries(query), key_view(key, segment, group), key_view(value, segment, group),
          queries(output), queries(log_sums).squeeze(3), /*dropout_p=*/0.0, segment.causal, masks.get(segment), scale);
      queries(d_query).copy_(dq);
      // Segments of one document share keys, so theirs add up.
      d_key.narrow(0, segment.key, segment.keys).add_(dk.sum(1).permute({1, 0, 2}));
      d_value.narrow(0, segment.key, segment.keys).add_(dv.sum(1).permute({1, 0, 2}));
    }
    return {d_query, d_key, d_value, at::Tensor(), at::Tensor()};
  }
};

void check(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && key.sizes() == value.sizes() && query.size(2) == key.size(2) &&
                  key.size(1) > 0 && query.size(1) % key.size(1) == 0,
              "attention: query ", query.sizes(), ", key ", key.sizes(), ", value ", value.sizes());
}

}  // namespace

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionSpec& spec,
                     const std::vector<int32_t>& cu_seqlens) {
  check(query, key, value);
  TORCH_CHECK(query.size(0) == key.size(0) && !cu_seqlens.empty() && cu_seqlens.front() == 0 &&
                  cu_seqlens.back() == query.size(0) && std::ranges::is_sorted(cu_seqlens),
              "attention: document boundaries do not cover the ", query.size(0), " tokens");
  if (!query.is_cpu()) {
    return composite::attention(query, key, value, spec, cu_seqlens);
  }
  return FlashAttention::apply(query.contiguous(), key.contiguous(), value.contiguous(), spec,
                               segments_of(cu_seqlens, spec.window));
}

at::Tensor attention_with_past(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                               const AttentionSpec& spec) {
  check(query, key, value);
  TORCH_CHECK(0 < query.size(0) && query.size(0) <= key.size(0), "attention: more queries than keys");
  if (query.size(0) == key.size(0)) {
    return attention(query, key, value, spec, {0, static_cast<int32_t>(query.size(0))});
  }
  const int64_t first = spec.window == 0 ? 0 : std::max<int64_t>(0, key.size(0) - query.size(0) - spec.window + 1);
  const Segment segment{0, query.size(0), first, key.size(0) - first, /*causal=*/false};
  const std::optional<at::Tensor> mask =
      query.size(0) == 1 ? std::nullopt : std::optional(additive_mask(segment, spec.window, query.options()));
  const int64_t group = query.size(1) / key.size(1);
  const at::Tensor output = std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(
      query_view(query, 0, query.size(0), key.size(1)), key_view(key, segment, group), key_view(value, segment, group),
      /*dropout_p=*/0.0, /*is_causal=*/false, mask, spec.scale));  // [K, G, T, D]
  return output.permute({2, 0, 1, 3}).reshape(query.sizes());
}

at::Tensor composite::attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                const AttentionSpec& spec, const std::vector<int32_t>& cu_seqlens) {
  const int64_t group = query.size(1) / key.size(1);
  const at::Tensor keys = key.repeat_interleave(group, 1).transpose(0, 1);      // [H, T, D]
  const at::Tensor values = value.repeat_interleave(group, 1).transpose(0, 1);  // [H, T, D]
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    const int64_t begin = cu_seqlens[i];
    const int64_t length = cu_seqlens[i + 1] - begin;
    const at::Tensor scores =
        query.narrow(0, begin, length).transpose(0, 1).matmul(keys.narrow(1, begin, length).transpose(1, 2)) *
        spec.scale;  // [H, L, L]
    const at::Tensor mask = additive_mask({0, length, 0, length, false}, spec.window, query.options());
    outputs.push_back((scores + mask).softmax(-1).matmul(values.narrow(1, begin, length)).transpose(0, 1));
  }
  return at::cat(outputs);
}

}  // namespace fettle::ops
