// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <span>

#include "ops/cpu/brgemm.h"
#include "ops/cpu/flash_attention.h"
#include "ops/cpu/kernels.h"
#include "ops/cuda/flash_attention.h"
#include "ops/dispatch.h"
#include "ops/share_out.h"
#include "ops/to_device.h"

// Why not torch's CPU flash attention: its products run in MKL, which on AMD processors has no bfloat16 kernels (a
// tenth of the speed of oneDNN's), and it knows no documents. Here the head of a document is a unit of work, forward
// even a block of its queries, and threads take units, the largest first, until none is left. A unit writes what no
// other writes, so the result does not depend on who takes it.

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

// A stream [T, H, D], one head of one document of it.
template <typename T>
cpu::HeadRows<const T> rows_of(const at::Tensor& stream, int64_t begin, int64_t head) {
  return {stream.const_data_ptr<T>() + (begin * stream.size(1) + head) * stream.size(2),
          stream.size(1) * stream.size(2)};
}
template <typename T>
cpu::HeadRows<T> writable_rows_of(const at::Tensor& stream, int64_t begin, int64_t head) {
  return {stream.mutable_data_ptr<T>() + (begin * stream.size(1) + head) * stream.size(2),
          stream.size(1) * stream.size(2)};
}

// A document and one of its heads.
struct Unit {
  int64_t begin;
  int64_t length;
  int64_t head;
};
std::vector<Unit> units_of(const std::vector<int64_t>& boundaries, int64_t heads) {
  std::vector<Unit> units;
  for (size_t i = 0; i + 1 < boundaries.size(); ++i) {
    const int64_t length = boundaries[i + 1] - boundaries[i];
    for (int64_t head = 0; length > 0 && head < heads; ++head) units.push_back({boundaries[i], length, head});
  }
  return units;
}

struct Documents {
  AttentionSpec spec;
  std::vector<int64_t> boundaries;
  [[nodiscard]] cpu::FlashShape shape(const Unit& unit, int64_t head_dim) const {
    return {unit.length, head_dim, spec.window, static_cast<float>(spec.scale)};
  }
};

// output [T, H, D] and log_sums [H, T] of every query's softmax.
template <typename T>
void flash_forward(const variable_list& streams, const Documents& documents, const at::Tensor& output,
                   const at::Tensor& log_sums) {
  const at::Tensor& query = streams[0];
  const Heads heads{query.size(1), streams[1].size(1), query.size(2)};
  struct Keys {
    Unit unit;
    cpu::PackedKeys<T> packed;
  };
  std::vector<Keys> keys;
  int64_t elements = 0;
  for (const Unit& unit : units_of(documents.boundaries, heads.key)) {
    elements += 2 * cpu::packed_elements(documents.shape(unit, heads.size));
    keys.push_back({unit, {}});
  }
  const at::Tensor buffer = at::empty({elements}, query.options());
  struct Item {
    const Keys* keys;
    int64_t head;
    int64_t block;
  };
  std::vector<Item> items;
  T* place = buffer.mutable_data_ptr<T>();
  for (Keys& each : keys) {
    const cpu::FlashShape shape = documents.shape(each.unit, heads.size);
    each.packed = {place, place + cpu::packed_elements(shape)};
    place += 2 * cpu::packed_elements(shape);
    for (int64_t block = (shape.length - 1) / cpu::kFlashBlock; block >= 0; --block) {
      for (int64_t head = 0; head < heads.group(); ++head) {
        items.push_back({&each, each.unit.head * heads.group() + head, block});
      }
    }
  }
  share_out<NoWorkspace>(keys, [&](const Keys& item, NoWorkspace&) {
    cpu::pack_keys<T>(rows_of<T>(streams[1], item.unit.begin, item.unit.head),
                      rows_of<T>(streams[2], item.unit.begin, item.unit.head), documents.shape(item.unit, heads.size),
                      item.packed);
  });
  std::ranges::stable_sort(items, std::greater{}, &Item::block);  // the later a block, the more keys it sees
  share_out<cpu::FlashWorkspace<T>>(items, [&](const Item& item, cpu::FlashWorkspace<T>& workspace) {
    const Unit& unit = item.keys->unit;
    const cpu::FlashHead<T> head{rows_of<T>(query, unit.begin, item.head),
                                 {item.keys->packed.keys, item.keys->packed.values},
                                 writable_rows_of<T>(output, unit.begin, item.head),
                                 log_sums.mutable_data_ptr<float>() + item.head * query.size(0) + unit.begin};
    cpu::flash_forward<T>(head, documents.shape(unit, heads.size), item.block, workspace);
  });
}

struct AttentionGradients {
  at::Tensor output;
  at::Tensor log_sums;
  at::Tensor d_output;
  at::Tensor d_query;
  at::Tensor d_key;
  at::Tensor d_value;
};

// The gradients of some key heads, each of one document; parts: float32, both gradients of each of their query heads.
template <typename T>
void backward_of(std::span<const Unit> units, const variable_list& streams, const Documents& documents,
                 const AttentionGradients& to) {
  const Heads heads{streams[0].size(1), streams[1].size(1), streams[0].size(2)};
  struct Item {
    Unit unit;
    int64_t part;  // where the gradients of its query head, or of the first of its key head's, begin
  };
  std::vector<Item> items;   // of query heads
  std::vector<Item> groups;  // of key heads
  int64_t elements = 0;
  for (const Unit& unit : units) {
    groups.push_back({unit, elements});
    for (int64_t head = 0; head < heads.group(); ++head) {
      items.push_back({{unit.begin, unit.length, unit.head * heads.group() + head}, elements});
      elements += unit.length * heads.size;
    }
  }
  const at::Tensor parts = at::empty({2, elements}, streams[0].options().dtype(at::kFloat));
  float* d_keys = parts.mutable_data_ptr<float>();
  float* d_values = d_keys + elements;
  std::ranges::stable_sort(items, std::greater{}, [](const Item& item) { return item.unit.length; });
  share_out<cpu::FlashWorkspace<T>>(items, [&](const Item& item, cpu::FlashWorkspace<T>& workspace) {
    const int64_t begin = item.unit.begin;
    const int64_t head = item.unit.head;
    const cpu::FlashGradient<T> arrays{
        .query = rows_of<T>(streams[0], begin, head),
        .key = rows_of<T>(streams[1], begin, head / heads.group()),
        .value = rows_of<T>(streams[2], begin, head / heads.group()),
        .output = rows_of<T>(to.output, begin, head),
        .d_output = rows_of<T>(to.d_output, begin, head),
        .log_sums = to.log_sums.const_data_ptr<float>() + head * to.log_sums.size(1) + begin,
        .d_query = writable_rows_of<T>(to.d_query, begin, head),
        .d_key = d_keys + item.part,
        .d_value = d_values + item.part};
    cpu::flash_backward<T>(arrays, documents.shape(item.unit, heads.size), workspace);
  });
  share_out<NoWorkspace>(groups, [&](const Item& group, NoWorkspace&) {
    const auto& [begin, length, head] = group.unit;
    const cpu::AttentionGroups size{heads.group(), length, heads.size, heads.key * heads.size};
    cpu::attention_sum_groups(d_keys + group.part, writable_rows_of<T>(to.d_key, begin, head).data, size);
    cpu::attention_sum_groups(d_values + group.part, writable_rows_of<T>(to.d_value, begin, head).data, size);
  });
}

template <typename T>
void flash_backward(const variable_list& streams, const Documents& documents, const AttentionGradients& to) {
  const Heads heads{streams[0].size(1), streams[1].size(1), streams[0].size(2)};
  const std::vector<Unit> units = units_of(documents.boundaries, heads.key);
  const int64_t threads = at::get_num_threads();
  for (size_t first = 0; first < units.size();) {
    int64_t bytes = 0;
    size_t last = first;
    while (last < units.size() && (static_cast<double>(bytes) < kAttentionPartBytes ||
                                   static_cast<int64_t>(last - first) * heads.group() < threads)) {
      bytes += 2 * heads.group() * units[last++].length * heads.size * static_cast<int64_t>(sizeof(float));
    }
    backward_of<T>(std::span(units).subspan(first, last - first), streams, documents, to);
    first = last;
  }
}

// What the products compute in: without micro-kernels for bfloat16 (before AVX-512 BF16), float32.
at::ScalarType product_type(const at::Tensor& query) {
  return has_cpu_products(query) ? query.scalar_type() : at::kFloat;
}

class FlashAttention : public torch::autograd::Function<FlashAttention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, const Documents& documents) {
    const at::ScalarType type = product_type(query);
    const variable_list streams{query.to(type), key.to(type), value.to(type)};
    const at::Tensor mixed = at::empty_like(streams[0]);
    const at::Tensor log_sums = at::empty({query.size(1), query.size(0)}, query.options().dtype(at::kFloat));
    with_element_type(mixed, [&]<typename T>(T) { flash_forward<T>(streams, documents, mixed, log_sums); });
    const at::Tensor output = mixed.to(query.scalar_type());
    context->save_for_backward({query, key, value, output, log_sums});
    context->saved_data["scale"] = documents.spec.scale;
    context->saved_data["window"] = documents.spec.window;
    context->saved_data["boundaries"] = documents.boundaries;
    return output;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Documents documents{{context->saved_data["scale"].toDouble(), context->saved_data["window"].toInt()},
                              context->saved_data["boundaries"].toIntVector()};
    const at::ScalarType given = saved[0].scalar_type();
    const at::ScalarType type = product_type(saved[0]);
    const variable_list streams{saved[0].to(type), saved[1].to(type), saved[2].to(type)};
    const AttentionGradients to{.output = saved[3].to(type),
                                .log_sums = saved[4],
                                .d_output = gradients[0].contiguous().to(type),
                                .d_query = at::empty_like(streams[0]),
                                .d_key = at::empty_like(streams[1]),
                                .d_value = at::empty_like(streams[2])};
    with_element_type(to.d_query, [&]<typename T>(T) { flash_backward<T>(streams, documents, to); });
    return {to.d_query.to(given), to.d_key.to(given), to.d_value.to(given), at::Tensor()};
  }
};

void check(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && key.sizes() == value.sizes() && query.size(2) == key.size(2) &&
                  key.size(1) > 0 && query.size(1) % key.size(1) == 0,
              "attention: query ", query.sizes(), ", key ", key.sizes(), ", value ", value.sizes());
}

constexpr int64_t kMostQueries = 128;

// True where query i, standing at key i + shift, sees key j.
at::Tensor visible(int64_t queries, int64_t keys, int64_t window, at::Device device) {
  const int64_t shift = keys - queries;
  const at::Tensor seen = at::ones({queries, keys}, at::TensorOptions().dtype(at::kBool).device(device)).tril(shift);
  return window > 0 ? seen.triu(shift - window + 1) : seen;
}

}  // namespace

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionSpec& spec,
                     const std::vector<int32_t>& cu_seqlens) {
  RECORD_FUNCTION("fettle::attention", c10::ArrayRef<const c10::IValue>());
  check(query, key, value);
  TORCH_CHECK(query.size(0) == key.size(0) && !cu_seqlens.empty() && cu_seqlens.front() == 0 &&
                  cu_seqlens.back() == query.size(0) && std::ranges::is_sorted(cu_seqlens),
              "attention: document boundaries do not cover the ", query.size(0), " tokens");
  if (cuda::has_flash_attention(query)) {
    return cuda::flash_attention(query, key, value, spec, cu_seqlens);
  }
  if (!has_cpu_kernel(query) || !cpu::has_brgemm<float>() || query.size(2) % 2 != 0) {
    return composite::attention(query, key, value, spec, cu_seqlens);
  }
  return FlashAttention::apply(query.contiguous(), key.contiguous(), value.contiguous(),
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
  const at::Tensor queries = query.reshape({-1, heads.key, heads.group(), heads.size}).permute({1, 2, 0, 3});
  const at::Tensor scores = at::bmm(queries.reshape({heads.key, -1, heads.size}), by_head(key).transpose(1, 2))
                                .to(at::kFloat)
                                .view({heads.key, heads.group(), query.size(0), keys})
                                .mul_(spec.scale);
  scores.masked_fill_(visible(query.size(0), keys, spec.window, query.device()).logical_not(),
                      -std::numeric_limits<double>::infinity());
  const at::Tensor weights = scores.softmax(-1).to(query.scalar_type()).view({heads.key, -1, keys});
  return at::bmm(weights, by_head(value))
      .view({heads.key, heads.group(), query.size(0), heads.size})
      .permute({2, 0, 1, 3})
      .contiguous()
      .view(query.sizes());
}

at::Tensor attention_of_last(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                             const AttentionSpec& spec, const std::vector<int64_t>& lengths) {
  const int64_t documents = query.size(0);
  TORCH_CHECK(query.dim() == 3 && key.dim() == 4 && key.sizes() == value.sizes() && key.size(0) == documents &&
                  key.size(3) == query.size(2) && query.size(1) % key.size(1) == 0 && std::ssize(lengths) == documents,
              "attention_of_last: query ", query.sizes(), ", key ", key.sizes(), ", value ", value.sizes());
  const auto [shortest, longest] = std::ranges::minmax(lengths);
  TORCH_CHECK(0 < shortest && longest <= key.size(2), "attention_of_last: lengths ", lengths);
  const int64_t first = spec.window == 0 ? 0 : std::max<int64_t>(0, shortest - spec.window);
  const int64_t keys = longest - first;
  const Heads heads{query.size(1), key.size(1), query.size(2)};
  const auto seen = [&](const at::Tensor& all) {
    return all.narrow(2, first, keys).view({documents * heads.key, keys, heads.size});
  };
  const at::Tensor scores =
      at::bmm(query.reshape({documents * heads.key, heads.group(), heads.size}), seen(key).transpose(1, 2))
          .to(at::kFloat)
          .view({documents, heads.key, heads.group(), keys})
          .mul_(spec.scale);
  if (shortest != longest || (spec.window > 0 && longest > spec.window)) {
    const at::Tensor ends = to_device(at::tensor(lengths, at::kLong), query.device()).view({documents, 1, 1, 1});
    const at::Tensor places = at::arange(first, longest, ends.options());
    at::Tensor hidden = places >= ends;
    if (spec.window > 0) hidden = hidden.logical_or(places < ends - spec.window);
    scores.masked_fill_(hidden, -std::numeric_limits<double>::infinity());
  }
  const at::Tensor weights = scores.softmax(-1).to(query.scalar_type()).view({-1, heads.group(), keys});
  return at::bmm(weights, seen(value)).view(query.sizes());
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
