// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/flash_attention.h"

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ops/dispatch.h"
#include "ops/to_device.h"

// Why not torch's own autograd of _flash_attention_forward: its backward adds up the query's gradient in whatever order
// blocks finish, unless torch is told to be deterministic, which other operations answer with errors. Steps are to be
// repeatable bit for bit, so this backward, and only it, is deterministic.

namespace fettle::ops::cuda {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class Deterministic {
 public:
  Deterministic() {
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);  // with NaN: for finding bugs
  }
  ~Deterministic() {
    at::globalContext().setDeterministicAlgorithms(algorithms_, warn_only_);
    at::globalContext().setDeterministicFillUninitializedMemory(fill_);
  }
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;

 private:
  bool algorithms_ = at::globalContext().deterministicAlgorithms();
  bool warn_only_ = at::globalContext().deterministicAlgorithmsWarnOnly();
  bool fill_ = at::globalContext().deterministicFillUninitializedMemory();
};

struct Documents {
  at::Tensor boundaries;  // int32, on the device
  double scale;
  int64_t longest;
  int64_t window_left;  // keys before its own that a query sees; -1: all
};
// None to the right: causal. Said by the window too, or torch folds the query heads of documents of one token into
// tokens, and miscounts them if a document is empty.
constexpr int64_t kWindowRight = 0;

class FlashAttention : public torch::autograd::Function<FlashAttention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, const Documents& documents) {
    const at::Tensor& boundaries = documents.boundaries;
    const auto [output, log_sums, random_state, unused, debug] = at::_flash_attention_forward(
        query, key, value, boundaries, boundaries, documents.longest, documents.longest, /*dropout_p=*/0.0,
        /*is_causal=*/true, /*return_debug_mask=*/false, documents.scale, documents.window_left, kWindowRight);
    context->save_for_backward({query, key, value, boundaries, output, log_sums, random_state, unused});
    context->saved_data["scale"] = documents.scale;
    context->saved_data["longest"] = documents.longest;
    context->saved_data["window_left"] = documents.window_left;
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const int64_t longest = context->saved_data["longest"].toInt();
    const Deterministic deterministic;
    auto [d_query, d_key, d_value] = at::_flash_attention_backward(
        gradients[0].contiguous(), saved[0], saved[1], saved[2], saved[4], saved[5], saved[3], saved[3], longest,
        longest, /*dropout_p=*/0.0, /*is_causal=*/true, saved[6], saved[7], context->saved_data["scale"].toDouble(),
        context->saved_data["window_left"].toInt(), kWindowRight);
    return {d_query, d_key, d_value, at::Tensor()};
  }
};

}  // namespace

bool has_flash_attention(const at::Tensor& query) {
  return uses_fused_ops() && query.is_cuda() && query.scalar_type() == at::kBFloat16 && query.size(0) > 0 &&
         query.size(2) % 8 == 0 && query.size(2) <= 256;
}

at::Tensor flash_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionSpec& spec, const std::vector<int32_t>& cu_seqlens) {
  int64_t longest = 0;
  for (size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    longest = std::max<int64_t>(longest, cu_seqlens[i + 1] - cu_seqlens[i]);
  }
  // A copy for every layer, from pinned memory, so that the host does not wait; a model that kept one tensor a batch
  // would save some microseconds.
  const at::Tensor boundaries = to_device(at::tensor(cu_seqlens, at::kInt), query.device());
  return FlashAttention::apply(query.contiguous(), key.contiguous(), value.contiguous(),
                               Documents{boundaries, spec.scale, longest, spec.window > 0 ? spec.window - 1 : -1});
}

}  // namespace fettle::ops::cuda
