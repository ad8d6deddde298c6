// SPDX-License-Identifier: Apache-2.0
#include "train/merged_weights.h"

#include <ATen/ops/addmm.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "model/weights.h"
#include "train/save.h"
#include "train/tensor_file.h"

namespace fettle::train {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

/// Whether `adapter` adds to this tensor: a module's bias stays as it is.
bool adds_to(const WeightedAdapter& adapter, const std::string& tensor) {
  return tensor.ends_with(".weight") && contains(adapter.targets.adapted, model::module_of(tensor));
}

}  // namespace

MergedWeights::MergedWeights(const hub::ModelFolder& base, const model::DecoderSpec& spec,
                             std::vector<WeightedAdapter> adapters)
    : base_(std::make_shared<const hub::TensorSource>(base.open_weights())), adapters_(std::move(adapters)) {
  std::vector<model::TensorShape> expected = model::expected_tensors(spec);
  model::check_names(*base_, expected, spec.tied_embeddings, "the model");
  for (const WeightedAdapter& adapter : adapters_) {
    sources_.push_back(std::make_shared<const hub::TensorSource>(adapter.weights));
    const std::vector<std::string>& saved = adapter.targets.saved;
    unties_ |= spec.tied_embeddings &&
               (contains(saved, model::module_of(kEmbedding)) || contains(saved, model::module_of(kHead)));
  }
  if (unties_) expected.push_back({kHead, {spec.vocab_size, spec.hidden_size}});
  const hub::DType only_type = file_type(stored_type(*base_));
  for (const model::TensorShape& tensor : expected) {
    views_.push_back({tensor.name, base.is_gguf ? only_type : stored(tensor.name).dtype, tensor.shape, {}});
  }
}

/// A head that was tied begins as the embedding.
const hub::TensorView& MergedWeights::stored(const std::string& name) const {
  return *base_->find(unties_ && name == kHead ? kEmbedding : name);
}

bool MergedWeights::is_changed(const hub::TensorView& view) const {
  const hub::TensorView& old = stored(view.name);
  return old.dtype != view.dtype || old.interleaved_heads != 0 ||
         std::ranges::any_of(adapters_, [&view](const WeightedAdapter& adapter) {
           return adds_to(adapter, view.name) || contains(adapter.targets.saved, model::module_of(view.name));
         });
}

bool MergedWeights::rounds_to(hub::DType type) const {
  return std::ranges::any_of(
      views_, [this, type](const hub::TensorView& view) { return view.dtype == type && is_changed(view); });
}

/// In float32.
at::Tensor MergedWeights::compute(const std::string& name) const {
  at::Tensor sum;
  for (size_t i = 0; i < adapters_.size() && !sum.defined(); ++i) {
    if (!contains(adapters_[i].targets.saved, model::module_of(name))) continue;
    sum = model::read_tensor(sources_[i], *sources_[i]->find(model::kPeftPrefix + name), at::kFloat);
  }
  if (!sum.defined()) sum = model::read_tensor(base_, stored(name), at::kFloat);
  for (size_t i = 0; i < adapters_.size(); ++i) {
    if (!adds_to(adapters_[i], name)) continue;
    const auto matrix = [&](const char* which) {
      const std::string full = fmt::format("{}{}.{}.weight", model::kPeftPrefix, model::module_of(name), which);
      return model::read_tensor(sources_[i], *sources_[i]->find(full), at::kFloat);
    };
    const double scale = adapters_[i].name.weight * model::lora_scaling(adapters_[i].config);
    sum = at::addmm(sum, matrix("lora_B"), matrix("lora_A"), /*beta=*/1, /*alpha=*/scale);
  }
  return sum;
}

std::span<const std::byte> MergedWeights::bytes(const hub::TensorView& view) {
  const c10::NoGradGuard no_gradients;
  current_.reset();
  if (!read_.empty()) release_pages(read_);
  hub::TensorView result = view;
  read_ = stored(view.name).bytes;
  if (is_changed(view)) {
    current_ = compute(view.name).to(model::torch_type(view.dtype)).contiguous();
    result.bytes = bytes_of(current_);
  } else {
    result.bytes = read_;
  }
  if (!model::is_finite(result)) {
    throw Error(ExitCode::kDiverged, fmt::format("the merged tensor {} holds NaN or infinity", view.name),
                "look for it in the base and the adapter; one that float16 cannot hold needs a base in bfloat16");
  }
  return result.bytes;
}

}  // namespace fettle::train
