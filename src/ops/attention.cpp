// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "ops/cpu/kernels.h"
#include "ops/dispatch.h"

// Why not torch's CPU flash attention: its products run in MKL, which on AMD processors has no bfloat16 kernels (a
// tenth of the speed of oneDNN's, measured on Zen 5). Here a document is cut into blocks of queries, and each block's
// scores with all keys it sees are three batched products by oneDNN and one pass of our own over scores that stay in
// the cache. As there, the scores are computed again in the backward.
//
// oneDNN compiles a kernel for every shape it meets, milliseconds and up to a megabyte each, and documents have every
// length: so their ends are padded to rounded lengths (zeros, which causality hides from every real query).

namespace fettle::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// T tokens, H query heads, K key heads, G = H/K query heads a key head, D elements a head.
struct Heads {
  int64_t query;
  int64_t key;
  int64_t size;
  [[nodiscard]] int64_t group() const { return query / key; }
};

// Consecutive queries of one document, and the keys that any of them sees; the last block reaches into the padding.
struct Block {
  int64_t query;  // from the document's begin, as is `key`
  int64_t queries;
  int64_t real_queries;
  int64_t key;
  int64_t keys;
};

constexpr int64_t kMostQueries = 128;        // more would compute more scores that the causal mask then drops
constexpr int64_t kLeastQueries = 16;        // fewer would starve the products
constexpr int64_t kBlockElements = 1 << 21;  // scores of a block: 4 MB of bfloat16
constexpr int64_t kLengthStep = 64;

// The next of a few lengths: multiples of 64, from 1,024 on eight an octave; 0 of 0.
int64_t rounded(int64_t length) {
  const auto octave = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(length)));
  const int64_t step = std::max(kLengthStep, octave / 8);
  return (length + step - 1) / step * step;
}

std::vector<Block> blocks_of(int64_t length, int64_t heads, int64_t window) {
  const int64_t padded = rounded(length);
  const int64_t seen = window > 0 ? std::min(padded, window + kMostQueries) : padded;
  const auto fitting = static_cast<uint64_t>(kBlockElements / (heads * seen));  // seen: a document is not empty
  const int64_t most = std::clamp(static_cast<int64_t>(std::bit_floor(fitting)), kLeastQueries, kMostQueries);
  std::vector<Block> blocks;
  for (int64_t query = 0; query < length; query += most) {
    const int64_t queries = std::min(most, padded - query);
    const int64_t key = window > 0 ? std::max<int64_t>(0, query - window + 1) : 0;
    const int64_t keys = std::min(rounded(query + queries - key), padded - key);
    blocks.push_back({query, queries, std::min(queries, length - query), key, keys});
  }
  return blocks;
}

// [L, H, D] → [K, G, L, D] as a view; writing to it writes to the stream.
at::Tensor by_key_head(const at::Tensor& stream, int64_t begin, int64_t count, const Heads& heads) {
  return stream.narrow(0, begin, count)
      .view({count, heads.key, stream.size(1) / heads.key, heads.size})
      .permute({1, 2, 0, 3});
}
// A copy of it for the products, with zeros behind the real rows: [K, G·L, D].
at::Tensor gather(const at::Tensor& stream, int64_t begin, const Block& block, const Heads& heads) {
  at::Tensor rows = at::empty({heads.key, stream.size(1) / heads.key, block.queries, heads.size}, stream.options());
  rows.narrow(2, 0, block.real_queries).copy_(by_key_head(stream, begin, block.real_queries, heads));
  rows.narrow(2, block.real_queries, block.queries - block.real_queries).zero_();
  return rows.view({heads.key, -1, heads.size});
}
void scatter(const at::Tensor& rows, const at::Tensor& stream, int64_t begin, const Block& block, const Heads& heads) {
  by_key_head(stream, begin, block.real_queries, heads)
      .copy_(rows.view({heads.key, -1, block.queries, heads.size}).narrow(2, 0, block.real_queries));
}

// Runs a kernel over all rows of scores [K, G·B, S]: run(scores' element type, first row, sizes).
template <typename Run>
void over_rows(const at::Tensor& scores, const Block& block, const AttentionSpec& spec, const Run& run) {
  const int64_t rows = scores.size(0) * scores.size(1);
  with_element_type(scores, [&]<typename T>(T) {
    T* data = scores.mutable_data_ptr<T>();
    parallel_rows(rows, block.keys, [&](int64_t begin, int64_t end) {
      run(data + begin * block.keys, begin,
          cpu::AttentionRows{end - begin, begin, block.queries, block.keys, block.query - block.key, spec.window,
                             static_cast<float>(spec.scale)});
    });
  });
}

// One document: its first token, where its log-sums begin, and its keys and values as [K, padded L, D].
struct Document {
  int64_t begin;
  int64_t padded_begin;
  at::Tensor keys;
  at::Tensor values;
};

at::Tensor scores_of(const at::Tensor& queries, const at::Tensor& keys, const Block& block) {
  return at::bmm(queries, keys.narrow(1, block.key, block.keys).transpose(1, 2));  // [K, G·B, S]
}

// What the forward writes: the output [T, H, D], and the log-sums of every softmax, block after block, each [K, G, B],
// padding included.
struct Results {
  at::Tensor output;
  at::Tensor log_sums;
};

void attend(const at::Tensor& query, const Document& document, const Block& block, const AttentionSpec& spec,
            Results& results) {
  const Heads heads{query.size(1), document.keys.size(0), query.size(2)};
  const int64_t begin = document.begin + block.query;
  float* log_sums = results.log_sums.mutable_data_ptr<float>() + (document.padded_begin + block.query) * heads.query;
  const at::Tensor scores = scores_of(gather(query, begin, block, heads), document.keys, block);
  over_rows(scores, block, spec, [&](auto* rows, int64_t first, const cpu::AttentionRows& size) {
    cpu::attention_softmax(rows, log_sums + first, size);
  });
  scatter(at::bmm(scores, document.values.narrow(1, block.key, block.keys)), results.output, begin, block, heads);
}

struct Documents {
  AttentionSpec spec;
  std::vector<int64_t> boundaries;
};

// Calls visit(document, length) for each document that is not empty.
template <typename Visit>
void for_each_document(const std::vector<int64_t>& boundaries, const at::Tensor& key, const at::Tensor& value,
                       const Visit& visit) {
  int64_t padded_begin = 0;
  for (size_t i = 0; i + 1 < boundaries.size(); ++i) {
    const int64_t begin = boundaries[i];
    const int64_t length = boundaries[i + 1] - begin;
    if (length == 0) {
      continue;
    }
    const int64_t padded = rounded(length);
    const auto keys_first = [&](const at::Tensor& stream) {
      at::Tensor copy = at::empty({stream.size(1), padded, stream.size(2)}, stream.options());
      copy.narrow(1, 0, length).copy_(stream.narrow(0, begin, length).permute({1, 0, 2}));
      copy.narrow(1, length, padded - length).zero_();
      return copy;
    };
    visit(Document{begin, padded_begin, keys_first(key), keys_first(value)}, length);
    padded_begin += padded;
  }
}

int64_t padded_tokens(const std::vector<int64_t>& boundaries) {
  int64_t tokens = 0;
  for (size_t i = 0; i + 1 < boundaries.size(); ++i) {
    tokens += rounded(boundaries[i + 1] - boundaries[i]);
  }
  return tokens;
}

class BlockedAttention : public torch::autograd::Function<BlockedAttention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, const Documents& documents) {
    const AttentionSpec& spec = documents.spec;
    const std::vector<int64_t>& boundaries = documents.boundaries;
    Results results{at::empty_like(query),
                    at::empty({padded_tokens(boundaries) * query.size(1)}, query.options().dtype(at::kFloat))};
    for_each_document(boundaries, key, value, [&](const Document& document, int64_t length) {
      for (const Block& block : blocks_of(length, query.size(1), spec.window)) {
        attend(query, document, block, spec, results);
      }
    });
    context->save_for_backward({query, key, value, results.output, results.log_sums});
    context->saved_data["scale"] = spec.scale;
    context->saved_data["window"] = spec.window;
    context->saved_data["boundaries"] = boundaries;
    return results.output;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const std::vector<int64_t> boundaries = context->saved_data["boundaries"].toIntVector();
    const AttentionSpec spec{context->saved_data["scale"].toDouble(), context->saved_data["window"].toInt()};
    Pass pass{.spec = spec,
              .heads = {saved[0].size(1), saved[1].size(1), saved[0].size(2)},
              .query = saved[0],
              .output = saved[3],
              .log_sums = saved[4],
              .d_output = gradients[0].contiguous(),
              .d_query = at::empty_like(saved[0])};
    at::Tensor d_key = at::empty_like(saved[1]);
    at::Tensor d_value = at::empty_like(saved[2]);
    for_each_document(boundaries, saved[1], saved[2], [&](const Document& document, int64_t length) {
      // Blocks share keys, so theirs add up: in float32, whatever the type.
      const at::Tensor dk = at::zeros(document.keys.sizes(), document.keys.options().dtype(at::kFloat));
      const at::Tensor dv = at::zeros_like(dk);
      for (const Block& block : blocks_of(length, pass.heads.query, spec.window)) {
        backward_block(pass, document, block, dk.narrow(1, block.key, block.keys), dv.narrow(1, block.key, block.keys));
      }
      d_key.narrow(0, document.begin, length).copy_(dk.narrow(1, 0, length).permute({1, 0, 2}));
      d_value.narrow(0, document.begin, length).copy_(dv.narrow(1, 0, length).permute({1, 0, 2}));
    });
    return {pass.d_query, d_key, d_value, at::Tensor()};
  }

 private:
  struct Pass {
    AttentionSpec spec;
    Heads heads;
    at::Tensor query;
    at::Tensor output;
    at::Tensor log_sums;
    at::Tensor d_output;
    at::Tensor d_query;
  };

  static void backward_block(const Pass& pass, const Document& document, const Block& block, const at::Tensor& dk,
                             const at::Tensor& dv) {
    const int64_t begin = document.begin + block.query;
    const auto rows_of = [&](const at::Tensor& stream) { return gather(stream, begin, block, pass.heads); };
    const float* log_sums =
        pass.log_sums.const_data_ptr<float>() + (document.padded_begin + block.query) * pass.heads.query;
    const at::Tensor queries = rows_of(pass.query);
    const at::Tensor d_output = rows_of(pass.d_output);
    const at::Tensor offsets = dots(d_output, rows_of(pass.output));

    const at::Tensor p = scores_of(queries, document.keys, block);  // scores, then probabilities
    over_rows(p, block, pass.spec, [&](auto* rows, int64_t first, const cpu::AttentionRows& size) {
      cpu::attention_probabilities(rows, log_sums + first, size);
    });
    dv.add_(at::bmm(p.transpose(1, 2), d_output));
    const at::Tensor d_scores = scores_of(d_output, document.values, block);  // dp, then the scores' gradient
    over_rows(d_scores, block, pass.spec, [&]<typename T>(T* rows, int64_t first, const cpu::AttentionRows& size) {
      cpu::attention_scores_gradient(p.const_data_ptr<T>() + first * size.keys, rows,
                                     offsets.const_data_ptr<float>() + first, size);
    });
    dk.add_(at::bmm(d_scores.transpose(1, 2), queries));
    scatter(at::bmm(d_scores, document.keys.narrow(1, block.key, block.keys)), pass.d_query, begin, block, pass.heads);
  }

  static at::Tensor dots(const at::Tensor& a, const at::Tensor& b) {
    const int64_t rows = a.size(0) * a.size(1);
    at::Tensor result = at::empty({rows}, a.options().dtype(at::kFloat));
    with_element_type(a, [&]<typename T>(T) {
      const T* left = a.const_data_ptr<T>();
      const T* right = b.const_data_ptr<T>();
      float* sums = result.mutable_data_ptr<float>();
      const int64_t columns = a.size(2);
      parallel_rows(rows, columns, [&](int64_t first, int64_t last) {
        cpu::row_dots(left + first * columns, right + first * columns, sums + first, last - first, columns);
      });
    });
    return result;
  }
};

void check(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && key.sizes() == value.sizes() && query.size(2) == key.size(2) &&
                  key.size(1) > 0 && query.size(1) % key.size(1) == 0,
              "attention: query ", query.sizes(), ", key ", key.sizes(), ", value ", value.sizes());
}

// True where query i, standing at key i + shift, sees key j.
at::Tensor visible(int64_t queries, int64_t keys, int64_t window, at::Device device) {
  const int64_t shift = keys - queries;
  const at::Tensor seen = at::ones({queries, keys}, at::TensorOptions().dtype(at::kBool).device(device)).tril(shift);
  return window > 0 ? seen.triu(shift - window + 1) : seen;
}

}  // namespace

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionSpec& spec,
                     const std::vector<int32_t>& cu_seqlens) {
  check(query, key, value);
  TORCH_CHECK(query.size(0) == key.size(0) && !cu_seqlens.empty() && cu_seqlens.front() == 0 &&
                  cu_seqlens.back() == query.size(0) && std::ranges::is_sorted(cu_seqlens),
              "attention: document boundaries do not cover the ", query.size(0), " tokens");
  if (!has_cpu_kernel(query)) {
    return composite::attention(query, key, value, spec, cu_seqlens);
  }
  return BlockedAttention::apply(query.contiguous(), key.contiguous(), value.contiguous(),
                                 Documents{spec, {cu_seqlens.begin(), cu_seqlens.end()}});
}

at::Tensor attention_with_past(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                               const AttentionSpec& spec) {
  check(query, key, value);
  TORCH_CHECK(0 < query.size(0) && query.size(0) <= key.size(0), "attention: more queries than keys");
  if (query.size(0) > kMostQueries) {  // a long prompt: the scores of all its queries at once would be T²
    const int64_t half = query.size(0) / 2;
    const int64_t seen = key.size(0) - query.size(0) + half;
    return at::cat(
        {attention_with_past(query.narrow(0, 0, half), key.narrow(0, 0, seen), value.narrow(0, 0, seen), spec),
         attention_with_past(query.narrow(0, half, query.size(0) - half), key, value, spec)});
  }
  const int64_t first = spec.window == 0 ? 0 : std::max<int64_t>(0, key.size(0) - query.size(0) - spec.window + 1);
  const int64_t keys = key.size(0) - first;
  const Heads heads{query.size(1), key.size(1), query.size(2)};
  const auto by_head = [&](const at::Tensor& stream) { return stream.narrow(0, first, keys).transpose(0, 1); };
  const Block all{.query = 0, .queries = query.size(0), .real_queries = query.size(0), .key = 0, .keys = keys};
  const at::Tensor scores = at::bmm(gather(query, 0, all, heads), by_head(key).transpose(1, 2))
                                .to(at::kFloat)
                                .view({heads.key, heads.group(), query.size(0), keys})
                                .mul_(spec.scale);
  scores.masked_fill_(visible(query.size(0), keys, spec.window, query.device()).logical_not(),
                      -std::numeric_limits<double>::infinity());
  const at::Tensor weights = scores.softmax(-1).to(query.scalar_type()).view({heads.key, -1, keys});
  at::Tensor output = at::empty_like(query);
  scatter(at::bmm(weights, by_head(value)), output, 0, all, heads);
  return output;
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
    const at::Tensor hidden = visible(length, length, spec.window, query.device()).logical_not();
    const at::Tensor weights = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity()).softmax(-1);
    outputs.push_back(weights.matmul(values.narrow(1, begin, length)).transpose(0, 1));
  }
  return at::cat(outputs);
}

}  // namespace fettle::ops
