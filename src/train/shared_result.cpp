// SPDX-License-Identifier: Apache-2.0
#include "train/shared_result.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <cstring>
#include <span>

#include "base/error.h"
#include "base/file.h"
#include "hub/adapter.h"
#include "hub/safetensors.h"
#include "hub/tensor_source.h"
#include "train/save.h"
#include "train/tensor_file.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

/// Rank 0 asks for one tensor after another, in an order that it alone knows, and who holds it sends it, as `type`.
class Requests {
 public:
  Requests(dist::Group& group, const std::vector<SharedTensor>& tensors, at::ScalarType type)
      : group_(group), tensors_(tensors), type_(type) {}

  /// On rank 0.
  [[nodiscard]] at::Tensor get(size_t index) {
    ask(static_cast<int64_t>(index));
    const SharedTensor& tensor = tensors_[index];
    if (tensor.tensor.defined()) return tensor.tensor.detach().to(at::kCPU, type_).contiguous();
    at::Tensor values = at::empty(tensor.shape, type_);
    group_.receive(values, tensor.holder);
    return values;
  }
  void end() { ask(kEnd); }

  /// On the others, until the end.
  void serve() {
    for (int64_t index = ask(0); index != kEnd; index = ask(0)) {
      const SharedTensor& tensor = tensors_[static_cast<size_t>(index)];
      if (tensor.holder == group_.rank()) group_.send(tensor.tensor.detach().to(type_).contiguous(), 0);
    }
  }

 private:
  static constexpr int64_t kEnd = -1;

  /// Rank 0's number, on every rank.
  int64_t ask(int64_t number) {
    const at::Tensor shared = at::full({1}, number, at::kLong);
    group_.broadcast(shared, 0).wait();
    return shared.item<int64_t>();
  }

  dist::Group& group_;
  const std::vector<SharedTensor>& tensors_;
  at::ScalarType type_;
};

void require_same_bytes(const hub::TensorSource& saved, const fs::path& folder, const std::string& name,
                        const at::Tensor& values) {
  const hub::TensorView* view = saved.find(name);
  const std::span<const std::byte> bytes = bytes_of(values);
  const bool is_same = view != nullptr && view->bytes.size() == bytes.size() &&
                       std::memcmp(view->bytes.data(), bytes.data(), bytes.size()) == 0;
  if (is_same) return;
  throw Error(ExitCode::kInternal,
              fmt::format("tensor {} of the result in {} differs from that in memory", name, folder.string()),
              "please report it; the checkpoints are intact");
}

}  // namespace

void save_shared_model(dist::Group& group, const fs::path& folder, const std::vector<SharedTensor>& weights,
                       const ModelInputs& inputs, uint64_t max_shard_size) {
  const c10::NoGradGuard no_gradients;
  const at::ScalarType type = stored_type(inputs.base.open_weights());
  Requests requests(group, weights, type);
  if (!group.is_main()) return requests.serve();
  std::vector<hub::TensorView> views;
  std::map<std::string, size_t> places;
  for (const SharedTensor& weight : weights) {
    places[weight.name] = views.size();
    views.push_back({weight.name, file_type(type), weight.shape, {}});
  }
  write_model_files(folder, inputs.base, inputs.tokenizer, type);
  at::Tensor values;
  hub::write_model_safetensors(folder, views, max_shard_size, [&](const hub::TensorView& view) {
    values = requests.get(places.at(view.name));
    require_finite({{view.name, values}});
    return bytes_of(values);
  });
  requests.end();
  sync_directory(folder);
}

void verify_shared_model(dist::Group& group, const fs::path& folder, const std::vector<SharedTensor>& weights,
                         const ModelInputs& inputs) {
  const c10::NoGradGuard no_gradients;
  Requests requests(group, weights, stored_type(inputs.base.open_weights()));
  if (!group.is_main()) return requests.serve();
  const hub::TensorSource saved = hub::TensorSource::open_safetensors(folder);
  for (size_t i = 0; i < weights.size(); ++i) require_same_bytes(saved, folder, weights[i].name, requests.get(i));
  requests.end();
}

void verify_adapter(const fs::path& folder, const std::vector<model::NamedTensor>& tensors) {
  const hub::TensorSource saved = hub::open_adapter_weights(folder);
  for (const model::NamedTensor& each : tensors) {
    require_same_bytes(saved, folder, each.name, each.tensor.detach().cpu().contiguous());
  }
}

}  // namespace fettle::train
