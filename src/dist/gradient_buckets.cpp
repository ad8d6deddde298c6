// SPDX-License-Identifier: Apache-2.0
#include "dist/gradient_buckets.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace fettle::dist {
namespace {

constexpr int64_t kAllRanks = -1;
/// Buckets of other owners on their way at once. A network slower than the backward would gather all of them.
constexpr size_t kMostInFlight = 4;

struct Bucket {
  int64_t owner = kAllRanks;
  int64_t elements = 0;
  int64_t parameters = 0;
  at::TensorOptions options = at::kFloat;  ///< of its parameters' gradients
  bool is_kept = true;                     ///< by this rank: it owns it, or all do
  at::Tensor flat = {};  ///< float32 [elements]; of a bucket that is not kept only from the first gradient on
  int64_t missing = 0;   ///< gradients that the last backward has not accumulated yet
  Pending sum = {};
};

struct Slot {
  at::Tensor parameter;
  size_t bucket = 0;
  int64_t offset = 0;           ///< elements before it in the bucket
  bool is_accumulated = false;  ///< in the last backward
};

}  // namespace

struct GradientBuckets::State {
  std::shared_ptr<Group> group;
  std::vector<Slot> slots;  ///< last parameter first
  std::vector<Bucket> buckets;
  std::mutex mutex;  // a backward may run on several threads
  size_t sent = 0;   ///< buckets on their way
  size_t freed = 0;  ///< of those, whose memory is given back if they are not kept
  bool has_owners = false;
  bool is_last = false;

  [[nodiscard]] at::Tensor view(const Slot& slot) const;
  void accumulated(Slot& slot);
  void take(Slot& slot);
  void send(Bucket& bucket);
  void send_ready();
  void free_arrived(size_t most_in_flight);
  void send_rest();
  void expect_all();
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

/// Puts slots into buckets, from the last parameter on. A bucket has one owner.
std::vector<Bucket> assign_buckets(std::vector<Slot>& slots, const std::vector<int64_t>& owners, int64_t bucket_bytes) {
  std::vector<Bucket> buckets;
  for (size_t i = 0; i < slots.size(); ++i) {
    const int64_t elements = slots[i].parameter.numel();
    const int64_t owner = owners.empty() ? kAllRanks : owners[slots.size() - 1 - i];
    const bool fits = !buckets.empty() && buckets.back().owner == owner &&
                      (buckets.back().elements + elements) * static_cast<int64_t>(sizeof(float)) <= bucket_bytes;
    if (!fits) buckets.push_back({.owner = owner, .options = slots[i].parameter.options().requires_grad(false)});
    slots[i].bucket = buckets.size() - 1;
    slots[i].offset = buckets.back().elements;
    buckets.back().elements += elements;
    ++buckets.back().parameters;
  }
  return buckets;
}

}  // namespace

at::Tensor GradientBuckets::State::view(const Slot& slot) const {
  return buckets[slot.bucket].flat.narrow(0, slot.offset, slot.parameter.numel()).view(slot.parameter.sizes());
}

void GradientBuckets::State::require_view(const Slot& slot) const {
  TORCH_CHECK(slot.parameter.grad().defined() && slot.parameter.grad().is_alias_of(buckets[slot.bucket].flat),
              "GradientBuckets: a gradient was replaced between begin and finish");
}

void GradientBuckets::State::accumulated(Slot& slot) {
  const std::scoped_lock lock(mutex);
  if (!is_last) return;
  // With a parameter in two blocks that are recomputed in the backward, one backward accumulates twice.
  TORCH_CHECK(slot.bucket >= sent, "GradientBuckets: a gradient changed after it was sent");
  if (buckets[slot.bucket].is_kept) {
    require_view(slot);
  } else {
    take(slot);
  }
  if (std::exchange(slot.is_accumulated, true)) return;
  --buckets[slot.bucket].missing;
  send_ready();
}

/// Moves a gradient that is not kept from its parameter to its bucket. One that has a bucket of its own is not copied.
void GradientBuckets::State::take(Slot& slot) {
  const c10::NoGradGuard no_gradients;
  Bucket& bucket = buckets[slot.bucket];
  at::Tensor gradient = std::exchange(slot.parameter.mutable_grad(), at::Tensor());
  if (bucket.parameters == 1 && !bucket.flat.defined()) {
    bucket.flat = gradient.contiguous().view({bucket.elements});
    return;
  }
  if (!bucket.flat.defined()) bucket.flat = at::zeros({bucket.elements}, bucket.options);
  view(slot).add_(gradient);
}

void GradientBuckets::State::send(Bucket& bucket) {
  if (bucket.owner == kAllRanks) {
    bucket.sum = group->all_reduce(bucket.flat);
    return;
  }
  if (!bucket.flat.defined()) bucket.flat = at::zeros({bucket.elements}, bucket.options);
  bucket.sum = group->reduce(bucket.flat, bucket.owner);
}

void GradientBuckets::State::send_ready() {
  for (; sent < buckets.size() && buckets[sent].missing == 0; ++sent) {
    if (has_owners) free_arrived(kMostInFlight - 1);
    send(buckets[sent]);
  }
}

void GradientBuckets::State::free_arrived(size_t most_in_flight) {
  for (; freed < sent && (sent - freed > most_in_flight || buckets[freed].sum.has_ended()); ++freed) {
    buckets[freed].sum.wait();
    if (!buckets[freed].is_kept) buckets[freed].flat.reset();
  }
}

void GradientBuckets::State::send_rest() {
  for (const Slot& slot : slots) {
    if (buckets[slot.bucket].is_kept) require_view(slot);
  }
  for (Bucket& bucket : buckets) bucket.missing = 0;
  send_ready();
  is_last = false;
  free_arrived(0);
}

void GradientBuckets::State::expect_all() {
  sent = freed = 0;
  for (Bucket& bucket : buckets) bucket.missing = bucket.parameters;
  for (Slot& slot : slots) slot.is_accumulated = false;
}

GradientBuckets::GradientBuckets(std::shared_ptr<Group> group, std::vector<at::Tensor> parameters, int64_t bucket_bytes,
                                 const std::vector<int64_t>& owners)
    : state_(std::make_shared<State>()) {
  TORCH_CHECK(owners.empty() || owners.size() == parameters.size(), "GradientBuckets: an owner for each parameter");
  state_->group = std::move(group);
  state_->has_owners = !owners.empty();
  for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter) {
    TORCH_CHECK(parameter->scalar_type() == at::kFloat && parameter->is_leaf(),
                "GradientBuckets: parameters are float32 leaves");
    state_->slots.push_back({.parameter = *parameter});
  }
  if (state_->group->size() == 1) return;
  const c10::NoGradGuard no_gradients;
  state_->buckets = assign_buckets(state_->slots, owners, bucket_bytes);
  for (Bucket& bucket : state_->buckets) {
    bucket.is_kept = bucket.owner == kAllRanks || bucket.owner == state_->group->rank();
    if (bucket.is_kept) bucket.flat = at::zeros({bucket.elements}, bucket.options);
  }
  for (Slot& slot : state_->slots) {
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
  state_->expect_all();
  for (Bucket& bucket : state_->buckets) {
    if (bucket.is_kept) bucket.flat.zero_();
  }
  for (Slot& slot : state_->slots) {
    // Undefined where nothing is kept, and in a group of one: the backward then makes it.
    const bool is_kept = !state_->buckets.empty() && state_->buckets[slot.bucket].is_kept;
    slot.parameter.mutable_grad() = is_kept ? state_->view(slot) : at::Tensor();
  }
}

void GradientBuckets::begin_batch(bool is_last) {
  state_->is_last = is_last || state_->has_owners;
}

void GradientBuckets::end_batch() {
  if (!state_->has_owners || state_->buckets.empty()) return;
  state_->send_rest();
  state_->expect_all();
}

void GradientBuckets::finish() {
  if (!state_->has_owners && !state_->buckets.empty()) state_->send_rest();
}

int64_t GradientBuckets::bytes() const {
  int64_t sum = 0;
  for (const Bucket& bucket : state_->buckets) {
    if (bucket.flat.defined()) sum += static_cast<int64_t>(bucket.flat.nbytes());
  }
  return sum;
}

void sum_gradients(Group& group, const std::vector<at::Tensor>& parameters) {
  constexpr int64_t kMostElements = 1 << 28;
  const c10::NoGradGuard no_gradients;
  for (size_t first = 0; first < parameters.size();) {
    std::vector<at::Tensor> flat;
    int64_t elements = 0;
    size_t last = first;
    while (last < parameters.size() && (last == first || elements + parameters[last].numel() <= kMostElements)) {
      const at::Tensor& gradient = parameters[last].grad();
      flat.push_back(gradient.defined() ? gradient.reshape({-1})
                                        : at::zeros({parameters[last].numel()}, parameters[last].options()));
      elements += parameters[last++].numel();
    }
    const at::Tensor sum = at::cat(flat);
    group.all_reduce(sum).wait();
    for (int64_t offset = 0; first < last; ++first) {
      const at::Tensor& parameter = parameters[first];
      parameter.mutable_grad() = sum.narrow(0, offset, parameter.numel()).view(parameter.sizes());
      offset += parameter.numel();
    }
  }
}

}  // namespace fettle::dist
