// SPDX-License-Identifier: Apache-2.0
#include "ops/lora_linear.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/native_dropout.h>
#include <ATen/ops/native_dropout_backward.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>

#include "ops/dispatch.h"
#include "ops/hpu/fp8.h"

namespace fettle::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What the backward needs, in the order in which it is saved. P projections, L of them with LoRA.
struct Saved {
  at::Tensor x;                      // [T, C]
  std::vector<Weight> weights;       // P, those in few bits as their tensors
  std::vector<at::Tensor> matrices;  // a0 b0 a1 b1 …: 2L
  std::vector<at::Tensor> low;       // [T, r] dropout(x)·aᵀ: L
  std::vector<at::Tensor> masks;     // [T, C] bool: L, none without dropout

  [[nodiscard]] variable_list flatten() const {
    variable_list all{x};
    for (const Weight& weight : weights) {
      if (const auto* quantized = std::get_if<QuantizedWeight>(&weight)) {
        all.insert(all.end(), {quantized->codes, quantized->scales});
      } else if (const auto* grouped = std::get_if<GroupedWeight>(&weight)) {
        all.insert(all.end(), {grouped->codes, grouped->scales, grouped->zeros, grouped->order});
      } else {
        all.push_back(std::get<at::Tensor>(weight));
      }
    }
    for (const auto* part : {&matrices, &low, &masks}) {
      all.insert(all.end(), part->begin(), part->end());
    }
    return all;
  }
  /// `formats` of each projection's weight: see below; `outputs` [T, O] of each: the gradients of its output.
  static Saved restore(const variable_list& all, const std::vector<int64_t>& formats, const variable_list& outputs,
                       size_t lora) {
    auto next = all.begin();
    const auto take = [&next](size_t count) {
      const auto first = next;
      next += static_cast<std::ptrdiff_t>(count);
      return std::vector<at::Tensor>(first, next);
    };
    Saved saved{.x = *next++, .weights = {}, .matrices = {}, .low = {}, .masks = {}};
    for (size_t i = 0; i < formats.size(); ++i) {
      saved.weights.push_back(restore(formats[i], outputs[i].size(1), saved.x.size(1), take));
    }
    saved.matrices = take(2 * lora);
    saved.low = take(lora);
    saved.masks = take(static_cast<size_t>(all.end() - next));
    return saved;
  }

  /// A WeightFormat, or kDense, or kDense less the bits of a grouped weight.
  static int64_t format(const Weight& weight) {
    if (const auto* quantized = std::get_if<QuantizedWeight>(&weight)) return static_cast<int64_t>(quantized->format);
    const auto* grouped = std::get_if<GroupedWeight>(&weight);
    return grouped != nullptr ? kDense - grouped->bits : kDense;
  }

 private:
  static constexpr int64_t kDense = -1;
  template <typename Take>
  static Weight restore(int64_t format, int64_t rows, int64_t columns, const Take& take) {
    if (format == kDense) return take(1)[0];
    if (format > kDense) {
      const auto parts = take(2);
      return QuantizedWeight{static_cast<WeightFormat>(format), rows, columns, parts[0], parts[1]};
    }
    const auto parts = take(4);
    return GroupedWeight{.bits = static_cast<int>(kDense - format),
                         .rows = rows,
                         .columns = columns,
                         .group = columns / parts[1].size(1),
                         .codes = parts[0],
                         .scales = parts[1],
                         .zeros = parts[2],
                         .order = parts[3]};
  }
};

std::vector<at::Tensor> even(const std::vector<at::Tensor>& matrices) {
  std::vector<at::Tensor> as;
  for (size_t i = 0; i < matrices.size(); i += 2) {
    as.push_back(matrices[i]);
  }
  return as;
}

/// sum += left·right, or becomes it.
void add_product(at::Tensor& sum, const at::Tensor& left, const at::Tensor& right) {
  sum = sum.defined() ? sum.addmm_(left, right) : at::mm(left, right);
}

// A product with a low-rank matrix takes a GPU as long as its result takes to move. So it comes first there, where it
// only writes, and the large product adds to what it finds while it computes: 4 % of a step of a Llama 1B.
bool adapter_goes_first(const at::Tensor& x) {
  return x.is_cuda();
}

/// x·weightᵀ + bias. Projections whose weights are in float8 round x once, together.
class Products {
 public:
  explicit Products(const at::Tensor& x) : x_(x) {}

  at::Tensor of(const LoraProjection& projection) {
    if (const auto* grouped = std::get_if<GroupedWeight>(&projection.weight)) {
      return grouped_linear(x_, *grouped, projection.bias);
    }
    const auto* quantized = std::get_if<QuantizedWeight>(&projection.weight);
    if (quantized == nullptr || quantized->format != WeightFormat::kFp8 || !hpu::has_fp8(x_)) {
      return at::linear(x_, dense(projection.weight, x_.scalar_type()), projection.bias);
    }
    if (!rounded_) rounded_ = hpu::to_fp8(x_);
    const at::Tensor y = hpu::fp8_linear(*rounded_, *quantized, x_.scalar_type());
    return projection.bias.defined() ? y + projection.bias : y;
  }

 private:
  at::Tensor x_;
  std::optional<hpu::Fp8> rounded_;
};

// Without dropout all projections read the same x, so their a's are stacked: one product with x for all of them, in the
// forward and in the backward. With dropout each reads an x of its own.
class LoraLinear : public torch::autograd::Function<LoraLinear> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x, at::TensorList matrices,
                               const std::vector<LoraProjection>& projections, LoraOptions options) {
    Saved saved{.x = x, .weights = {}, .matrices = matrices.vec(), .low = {}, .masks = {}};
    project_down(saved, options.dropout);
    std::vector<int64_t> lora_of;  // of every projection: its pair of matrices, or -1
    std::vector<int64_t> formats;
    variable_list outputs;
    int64_t pair = 0;
    Products products(x);
    for (const LoraProjection& projection : projections) {
      const bool adds_weight = projection.a.defined() && !projection.bias.defined() && adapter_goes_first(x);
      at::Tensor y =
          adds_weight ? at::empty({x.size(0), rows(projection.weight)}, x.options()) : products.of(projection);
      if (projection.a.defined()) {
        y.addmm_(saved.low[pair], projection.b.t(), /*beta=*/adds_weight ? 0 : 1, /*alpha=*/options.scaling);
      }
      if (adds_weight) y.addmm_(x, dense(projection.weight, x.scalar_type()).t());
      lora_of.push_back(projection.a.defined() ? pair++ : -1);
      saved.weights.push_back(projection.weight);
      formats.push_back(Saved::format(projection.weight));
      outputs.push_back(y);
    }
    context->save_for_backward(saved.flatten());
    context->saved_data["scaling"] = options.scaling;
    context->saved_data["dropout"] = options.dropout;
    context->saved_data["lora_of"] = lora_of;
    context->saved_data["formats"] = formats;
    return outputs;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const std::vector<int64_t> lora_of = context->saved_data["lora_of"].toIntVector();
    const double scaling = context->saved_data["scaling"].toDouble();
    const auto lora = static_cast<size_t>(std::ranges::count_if(lora_of, [](int64_t pair) { return pair >= 0; }));
    const Saved saved =
        Saved::restore(context->get_saved_variables(), context->saved_data["formats"].toIntVector(), gradients, lora);

    const bool x_needs_gradient = context->needs_input_grad(0);
    variable_list results(1 + saved.matrices.size() + 2);
    at::Tensor& dx = results[0];
    const auto through_weight = [&](size_t i) {
      const at::Tensor& dy = gradients[i];
      if (x_needs_gradient) add_product(dx, dy, dense(saved.weights[i], dy.scalar_type()));
    };
    std::vector<at::Tensor> d_low;  // [T, r] each
    for (size_t i = 0; i < lora_of.size(); ++i) {
      if (!adapter_goes_first(saved.x)) through_weight(i);
      if (lora_of[i] < 0) continue;
      const auto pair = static_cast<size_t>(lora_of[i]);
      d_low.push_back(at::mm(gradients[i], saved.matrices[2 * pair + 1]).mul_(scaling));
      // (lowᵀ·dy)ᵀ: the same product the other way round runs at two thirds of the speed.
      results[2 + 2 * pair] = at::mm(saved.low[pair].t(), gradients[i]).mul_(scaling).t().contiguous();
    }
    if (!d_low.empty()) {
      project_down_backward(saved, d_low, {context->saved_data["dropout"].toDouble(), x_needs_gradient}, results);
    }
    if (adapter_goes_first(saved.x)) {
      for (size_t i = 0; i < lora_of.size(); ++i) through_weight(i);
    }
    return results;
  }

 private:
  static void project_down(Saved& saved, double dropout) {
    const std::vector<at::Tensor> as = even(saved.matrices);
    if (as.empty()) {
      return;
    }
    if (dropout == 0) {
      const at::Tensor low = at::mm(saved.x, at::cat(as).t());  // [T, Σr]
      int64_t column = 0;
      for (const at::Tensor& a : as) {
        saved.low.push_back(low.narrow(1, column, a.size(0)).contiguous());
        column += a.size(0);
      }
      return;
    }
    for (const at::Tensor& a : as) {
      auto [dropped, mask] = at::native_dropout(saved.x, dropout, /*train=*/true);
      saved.low.push_back(at::mm(dropped, a.t()));
      saved.masks.push_back(mask);
    }
  }

  struct DownOptions {
    double dropout;
    bool x_needs_gradient;
  };
  // Adds the low-rank path's gradient to results[0] (x) if that is wanted, and sets those of the a's.
  static void project_down_backward(const Saved& saved, const std::vector<at::Tensor>& d_low, DownOptions options,
                                    variable_list& results) {
    const std::vector<at::Tensor> as = even(saved.matrices);
    at::Tensor& dx = results[0];
    if (options.dropout == 0) {
      const at::Tensor all = at::cat(d_low, 1);  // [T, Σr]
      if (options.x_needs_gradient) add_product(dx, all, at::cat(as));
      const at::Tensor d_a = at::mm(all.t(), saved.x);
      int64_t row = 0;
      for (size_t i = 0; i < as.size(); ++i) {
        results[1 + 2 * i] = d_a.narrow(0, row, as[i].size(0));
        row += as[i].size(0);
      }
      return;
    }
    const double keep_scale = 1.0 / (1.0 - options.dropout);
    for (size_t i = 0; i < as.size(); ++i) {
      results[1 + 2 * i] = at::mm(d_low[i].t(), at::native_dropout_backward(saved.x, saved.masks[i], keep_scale));
      if (!options.x_needs_gradient) continue;
      const at::Tensor share = at::native_dropout_backward(at::mm(d_low[i], as[i]), saved.masks[i], keep_scale);
      dx = dx.defined() ? dx.add_(share) : share;
    }
  }
};

void check(const at::Tensor& x, const LoraProjection& projection) {
  const auto* plain = std::get_if<at::Tensor>(&projection.weight);
  TORCH_CHECK(plain == nullptr || (plain->dim() == 2 && plain->scalar_type() == x.scalar_type()),
              "lora_linear: x and weight of one type");
  TORCH_CHECK(columns(projection.weight) == x.size(1), "lora_linear: x ", x.sizes(), " and weight [",
              rows(projection.weight), ", ", columns(projection.weight), "]");
  TORCH_CHECK(projection.a.defined() == projection.b.defined(), "lora_linear: a without b or b without a");
  if (projection.a.defined()) {
    TORCH_CHECK(projection.a.dim() == 2 && projection.b.dim() == 2 && projection.a.size(1) == x.size(1) &&
                    projection.b.size(0) == rows(projection.weight) && projection.a.size(0) == projection.b.size(1),
                "lora_linear: a ", projection.a.sizes(), " and b ", projection.b.sizes(), " beside a weight of ",
                rows(projection.weight), " rows");
  }
}

}  // namespace

std::vector<at::Tensor> lora_linear(const at::Tensor& x, const std::vector<LoraProjection>& projections,
                                    const LoraOptions& options) {
  RECORD_FUNCTION("fettle::lora_linear", c10::ArrayRef<const c10::IValue>());
  TORCH_CHECK(x.dim() == 2 && options.dropout >= 0 && options.dropout < 1, "lora_linear: x ", x.sizes(), ", dropout ",
              options.dropout);
  std::vector<at::Tensor> matrices;
  for (const LoraProjection& projection : projections) {
    check(x, projection);
    const auto* plain = std::get_if<at::Tensor>(&projection.weight);
    const bool constant = !(plain != nullptr && plain->requires_grad()) &&
                          !(projection.bias.defined() && projection.bias.requires_grad());
    if (!uses_fused_ops() || (at::GradMode::is_enabled() && !constant)) {
      return composite::lora_linear(x, projections, options);
    }
    if (projection.a.defined()) {
      matrices.push_back(projection.a);
      matrices.push_back(projection.b);
    }
  }
  return LoraLinear::apply(x.contiguous(), at::TensorList(matrices), projections, options);
}

std::vector<at::Tensor> composite::lora_linear(const at::Tensor& x, const std::vector<LoraProjection>& projections,
                                               const LoraOptions& options) {
  std::vector<at::Tensor> outputs;
  for (const LoraProjection& projection : projections) {
    const auto* plain = std::get_if<at::Tensor>(&projection.weight);
    at::Tensor y;
    if (plain != nullptr) {
      y = at::linear(x, *plain, projection.bias);
    } else {  // not at::linear: autograd would keep the expanded matrix
      const std::vector<LoraProjection> frozen{{projection.weight, projection.bias, {}, {}}};
      y = LoraLinear::apply(x.contiguous(), at::TensorList(), frozen, LoraOptions())[0];
    }
    if (projection.a.defined()) {
      const at::Tensor dropped = at::dropout(x, options.dropout, /*train=*/options.dropout > 0);
      y = y + at::linear(at::linear(dropped, projection.a), projection.b) * options.scaling;
    }
    outputs.push_back(y);
  }
  return outputs;
}

}  // namespace fettle::ops
