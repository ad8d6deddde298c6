// SPDX-License-Identifier: Apache-2.0
#include "ops/linear_cross_entropy.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/cpu/kernels.h"
#include "ops/cross_entropy_function.h"
#include "ops/dispatch.h"
#include "ops/hpu/cross_entropy.h"

namespace fettle::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Logits of a chunk stay in the last-level cache between the product, the softmax and the product back: on two Zen 5
// cores with V = 49,152, 256 rows (24 MB) ran 1.3 times as fast as 1,024.
constexpr int64_t kChunkBytes = 24 << 20;
constexpr int64_t kLeastRows =
    256;  // the weight is read anew for each chunk: with V = 128,256, 98 rows took 1.15 times as long

// An accelerator needs larger products than a cache has room for, and adds each chunk's share of the weight's gradient
// to all of it: at V = 151,936 and C = 896 that took a quarter of the head's time in chunks of 256 MiB.
constexpr int64_t kAcceleratorChunkBytes = 512 << 20;
constexpr int64_t kAcceleratorRows = 128;  // whole tiles of a product

// dW += dlogitsᵀ·hidden in float32, whatever the type of the factors.
void add_weight_gradient(at::Tensor& sum, const at::Tensor& d_logits, const at::Tensor& hidden) {
  if (d_logits.scalar_type() == at::kFloat) {
    sum.addmm_(d_logits.t(), hidden);
  } else {
    sum.add_(at::mm(d_logits.t(), hidden));
  }
}

// The rows that are computed: those with a target. On a GPU all rows: to know how many have one, the host would wait
// for all that the device still has to do. Rows without are left out of the sum by the kernel, and their part of the
// products is lost; a caller that knows the labels on the host can leave them out of `hidden`.
class Rows {
 public:
  explicit Rows(const at::Tensor& labels) : targets_(labels) {
    if (labels.is_cuda()) return;
    index_ = at::nonzero(labels != kIgnore).squeeze(1);
    targets_ = labels.index_select(0, index_);
  }

  [[nodiscard]] const at::Tensor& targets() const { return targets_; }
  [[nodiscard]] at::Tensor of(const at::Tensor& hidden, int64_t begin, int64_t size) const {
    return index_.defined() ? hidden.index_select(0, index_.narrow(0, begin, size)) : hidden.narrow(0, begin, size);
  }
  /// to[the rows] = d_logits · weight
  void set_product(const at::Tensor& to, int64_t begin, const at::Tensor& d_logits, const at::Tensor& weight) const {
    at::Tensor rows = index_.defined() ? at::Tensor() : to.narrow(0, begin, d_logits.size(0));
    if (index_.defined()) {
      to.index_copy_(0, index_.narrow(0, begin, d_logits.size(0)), at::mm(d_logits, weight));
    } else {
      at::mm_out(rows, d_logits, weight);
    }
  }

 private:
  at::Tensor targets_;
  at::Tensor index_;  // undefined: all
};

void losses_and_gradient(at::Tensor& logits, const at::Tensor& targets, const at::Tensor& losses, bool write_gradient) {
  if (logits.is_cuda()) {
    launch(&cuda::KernelTable::cross_entropy, logits,
           {.type = kernel_type(logits),
            .rows = logits.size(0),
            .columns = logits.size(1),
            .write_gradient = write_gradient,
            .ignored = kIgnore,
            .logits = logits.mutable_data_ptr(),
            .labels = targets.const_data_ptr<int64_t>(),
            .losses = losses.mutable_data_ptr<float>()});
    return;
  }
  with_element_type(logits, [&]<typename T>(T) {
    T* values = logits.mutable_data_ptr<T>();
    const int64_t columns = logits.size(1);
    parallel_rows(logits.size(0), columns, [&](int64_t begin, int64_t end) {
      cpu::cross_entropy(values + begin * columns, targets.const_data_ptr<int64_t>() + begin,
                         losses.mutable_data_ptr<float>() + begin, {end - begin, columns, write_gradient});
    });
  });
}

CrossEntropyParts compute(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                          const CrossEntropyWanted& wanted) {
  const Rows rows(labels);
  const int64_t count = rows.targets().size(0);
  at::Tensor losses = at::empty({count}, hidden.options().dtype(at::kFloat));
  at::Tensor d_hidden = wanted.hidden_gradient ? at::zeros_like(hidden) : at::Tensor();
  at::Tensor d_weight =
      wanted.weight_gradient ? at::zeros(weight.sizes(), weight.options().dtype(at::kFloat)) : at::Tensor();
  for (int64_t begin = 0; begin < count; begin += wanted.chunk_rows) {
    const int64_t size = std::min(wanted.chunk_rows, count - begin);
    const at::Tensor chunk = rows.of(hidden, begin, size);
    at::Tensor logits = at::mm(chunk, weight.t());
    losses_and_gradient(logits, rows.targets().narrow(0, begin, size), losses.narrow(0, begin, size),
                        wanted.hidden_gradient || wanted.weight_gradient);
    if (wanted.hidden_gradient) {
      rows.set_product(d_hidden, begin, logits, weight);
    }
    if (wanted.weight_gradient) {
      add_weight_gradient(d_weight, logits, chunk);
    }
  }
  return {losses.sum(), d_hidden, d_weight};
}

struct Computation {
  ComputeCrossEntropy compute;
  CrossEntropyWanted wanted;
};

class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& weight,
                            const at::Tensor& labels, const Computation& computation) {
    const CrossEntropyParts parts = computation.compute(hidden, weight, labels, computation.wanted);
    context->saved_data["d_hidden"] = parts.d_hidden;
    context->saved_data["d_weight"] = parts.d_weight;
    context->saved_data["type"] = weight.scalar_type();
    return parts.loss;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor& scale = gradients[0];
    const at::Tensor d_hidden = context->saved_data["d_hidden"].toTensor();
    const at::Tensor d_weight = context->saved_data["d_weight"].toTensor();
    return {d_hidden.defined() ? d_hidden * scale : at::Tensor(),
            d_weight.defined() ? (d_weight * scale).to(context->saved_data["type"].toScalarType()) : at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor apply_cross_entropy(ComputeCrossEntropy compute, const at::Tensor& hidden, const at::Tensor& weight,
                               const at::Tensor& labels, int64_t chunk_rows) {
  const bool differentiable = at::GradMode::is_enabled();
  const CrossEntropyWanted wanted{.hidden_gradient = differentiable && hidden.requires_grad(),
                                  .weight_gradient = differentiable && weight.requires_grad(),
                                  .chunk_rows = chunk_rows};
  return LinearCrossEntropy::apply(hidden, weight, labels, Computation{compute, wanted});
}

int64_t cross_entropy_chunk_rows(int64_t row_bytes, c10::DeviceType device) {
  if (device == at::kCPU) return std::max(kLeastRows, kChunkBytes / row_bytes);
  return std::max(kLeastRows, kAcceleratorChunkBytes / row_bytes / kAcceleratorRows * kAcceleratorRows);
}

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                                int64_t chunk_rows) {
  RECORD_FUNCTION("fettle::linear_cross_entropy", c10::ArrayRef<const c10::IValue>());
  TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1) &&
                  hidden.scalar_type() == weight.scalar_type() && labels.dim() == 1 &&
                  labels.size(0) == hidden.size(0) && labels.scalar_type() == at::kLong,
              "linear_cross_entropy: hidden ", hidden.sizes(), ", weight ", weight.sizes(),
              " of one type, int64 labels ", labels.sizes());
  // Labels on a device are trusted: reading them would wait for it. A wrong one makes the loss NaN.
  if (labels.is_cpu()) {
    const at::Tensor outside = (labels != kIgnore).logical_and((labels < 0).logical_or(labels >= weight.size(0)));
    TORCH_CHECK(!outside.any().item<bool>(), "linear_cross_entropy: a label is outside [0, ", weight.size(0), ")");
  }
  const int64_t row_bytes = weight.size(0) * static_cast<int64_t>(weight.element_size());
  const int64_t rows = chunk_rows > 0 ? chunk_rows : cross_entropy_chunk_rows(row_bytes, hidden.device().type());
  if (uses_fused_ops() && hidden.is_hpu()) return hpu::linear_cross_entropy(hidden, weight, labels, rows);
  if (!has_kernel(hidden)) {
    return composite::linear_cross_entropy(hidden, weight, labels);
  }
  return apply_cross_entropy(&compute, hidden.contiguous(), weight, labels.contiguous(), rows);
}

at::Tensor composite::linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                           const at::Tensor& labels) {
  const at::Tensor logits = at::linear(hidden, weight);
  const at::Tensor wide = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  return at::cross_entropy_loss(wide, labels, {}, at::Reduction::Sum, kIgnore).to(at::kFloat);
}

}  // namespace fettle::ops
