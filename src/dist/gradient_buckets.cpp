// SPDX-License-Identifier: Apache-2.0
#include "dist/gradient_buckets.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace fettle::dist {
namespace {

struct Bucket {
  at::Tensor flat;  ///< float32 [n]
  int64_t parameters = 0;
  int64_t missing = 0;  ///< gradients that the last backward has not accumulated yet
  Pending sum;
};

struct Slot {
  at::Tensor parameter;
  at::Tensor gradient;  ///< view of the bucket
  size_t bucket;
  bool is_accumulated = false;  ///< in the last backward
};

}  // namespace

struct GradientBuckets::State {
  std::shared_ptr<Group> group;
  std::vector<Slot> slots;  ///< last parameter first
  std::vector<Bucket> buckets;
  std::mutex mutex;  // a backward may run on several threads
  size_t sent = 0;   ///< buckets on their way
  bool is_last = false;

  void accumulated(Slot& slot);
  void send_ready();
  void require_view(const Slot& slot) const;
};

namespace {

class Hook : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit Hook(std::function<void()> call) : call_(std::move(call)) {}
  void operator()(const at::Tensor& /*parameter*/) override { call_(); }

 private:
  std::function<void()> call_;
};

/// Fills buckets from the last parameter on. Returns the elements of each.
std::vector<int64_t> assign_buckets(std::vector<Slot>& slots, int64_t bucket_bytes) {
  std::vector<int64_t> sizes;
  for (Slot& slot : slots) {
    const int64_t elements = slot.parameter.numel();
    const bool fits = !sizes.empty() && (sizes.back() + elements) * static_cast<int64_t>(sizeof(float)) <= bucket_bytes;
    if (!fits) sizes.push_back(0);
    slot.bucket = sizes.size() - 1;
    sizes.back() += elements;
  }
  return sizes;
}

}  // namespace

void GradientBuckets::State::require_view(const Slot& slot) const {
  TORCH_CHECK(slot.parameter.grad().defined() && slot.parameter.grad().is_alias_of(slot.gradient),
              "GradientBuckets: a gradient was replaced between begin and finish");
}

void GradientBuckets::State::accumulated(Slot& slot) {
  const std::scoped_lock lock(mutex);
  if (!is_last) return;
  // With a parameter in two blocks that are recomputed in the backward, one backward accumulates twice.
  TORCH_CHECK(slot.bucket >= sent, "GradientBuckets: a gradient changed after it was sent");
  require_view(slot);
  if (std::exchange(slot.is_accumulated, true)) return;
  --buckets[slot.bucket].missing;
  send_ready();
}

void GradientBuckets::State::send_ready() {
  for (; sent < buckets.size() && buckets[sent].missing == 0; ++sent) {
    buckets[sent].sum = group->all_reduce(buckets[sent].flat);
  }
}

GradientBuckets::GradientBuckets(std::shared_ptr<Group> group, std::vector<at::Tensor> parameters, int64_t bucket_bytes)
    : state_(std::make_shared<State>()) {
  state_->group = std::move(group);
  for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter) {
    TORCH_CHECK(parameter->scalar_type() == at::kFloat && parameter->is_contiguous() && parameter->is_leaf(),
                "GradientBuckets: parameters are contiguous float32 leaves");
    state_->slots.push_back({*parameter, {}, 0});
  }
  if (state_->group->size() == 1) return;
  const c10::NoGradGuard no_gradients;
  for (const int64_t elements : assign_buckets(state_->slots, bucket_bytes)) {
    state_->buckets.push_back({at::zeros({elements}, at::kFloat), 0, 0, {}});
  }
  std::vector<int64_t> filled(state_->buckets.size(), 0);
  for (Slot& slot : state_->slots) {
    Bucket& bucket = state_->buckets[slot.bucket];
    slot.gradient = bucket.flat.narrow(0, filled[slot.bucket], slot.parameter.numel()).view(slot.parameter.sizes());
    filled[slot.bucket] += slot.parameter.numel();
    ++bucket.parameters;
    // A weak pointer: the parameter owns the hook, and the state the parameter.
    auto hook = [weak = std::weak_ptr(state_), &slot] {
      if (const auto state = weak.lock()) state->accumulated(slot);
    };
    torch::autograd::impl::set_post_acc_grad_hooks(slot.parameter, std::make_unique<Hook>(std::move(hook)));
  }
}

GradientBuckets::~GradientBuckets() {
  if (state_->buckets.empty()) return;
  for (const Slot& slot : state_->slots) torch::autograd::impl::set_post_acc_grad_hooks(slot.parameter, nullptr);
}

void GradientBuckets::begin() {
  const c10::NoGradGuard no_gradients;
  state_->is_last = false;
  state_->sent = 0;
  for (Bucket& bucket : state_->buckets) {
    bucket.flat.zero_();
    bucket.missing = bucket.parameters;
  }
  for (Slot& slot : state_->slots) {
    slot.parameter.mutable_grad() = slot.gradient;  // undefined in a group of one: the backward then makes them
    slot.is_accumulated = false;
  }
}

void GradientBuckets::last_backward() {
  state_->is_last = true;
}

void GradientBuckets::finish() {
  if (state_->buckets.empty()) return;
  for (const Slot& slot : state_->slots) state_->require_view(slot);
  for (Bucket& bucket : state_->buckets) bucket.missing = 0;
  state_->send_ready();
  state_->is_last = false;
  for (Bucket& bucket : state_->buckets) bucket.sum.wait();
}

}  // namespace fettle::dist
