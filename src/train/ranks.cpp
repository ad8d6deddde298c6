// SPDX-License-Identifier: Apache-2.0
#include "train/ranks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "config/describe.h"

namespace fettle::train {
namespace {

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

nlohmann::json shared_options(const config::Config& config) {
  const nlohmann::ordered_json all = config::to_json(config);
  nlohmann::json shared = nlohmann::json::object();
  for (const char* name : {"zero_stage", "ddp_bucket_cap_mb", "do_train", "do_eval", "eval_strategy", "eval_steps",
                           "per_device_eval_batch_size", "save_strategy", "save_steps", "grad_spike_limit",
                           "gradient_checkpointing", "verify_saved_model", "max_shard_size"}) {
    shared[name] = all.at(name);
  }
  return shared;
}

dist::GroupOptions group_options(const config::DistributedConfig& options) {
  const auto seconds = [](double value) { return std::chrono::seconds(static_cast<int64_t>(std::ceil(value))); };
  return {.timeout = seconds(options.ddp_timeout), .peer_timeout = seconds(options.peer_timeout)};
}

std::string share_text(dist::Group& group, const std::string& text) {
  if (group.size() == 1) return text;
  const at::Tensor length = at::full({1}, static_cast<int64_t>(text.size()), at::kLong);
  group.broadcast(length, 0).wait();
  const at::Tensor bytes = at::empty({length.item<int64_t>()}, at::kByte);
  if (bytes.numel() == 0) return {};
  if (group.is_main()) std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  group.broadcast(bytes, 0).wait();
  return {static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes()};
}

void share_tensors(dist::Group& group, const std::vector<model::NamedTensor>& tensors) {
  if (group.size() == 1) return;
  const c10::NoGradGuard no_gradients;
  std::vector<dist::Group::Broadcast> broadcasts;
  for (const model::NamedTensor& tensor : tensors) broadcasts.push_back({tensor.tensor.detach(), 0});
  group.broadcast_all(broadcasts);
}

void require_own_devices(dist::Group& group, at::Device device) {
  if (group.size() == 1) return;
  group.require_same("the device", c10::DeviceTypeName(device.type(), /*lower_case=*/true));
  if (device.is_cpu()) return;
  const char* variable = device.is_hpu() ? "HLS_MODULE_ID" : "CUDA_VISIBLE_DEVICES";
  const char* chosen = std::getenv(variable);
  if (device.is_hpu() && chosen == nullptr) return;  // one process a machine, which took a card that was free
  const std::string place =
      fmt::format("{}, {}={}, {}", host_name(), variable, chosen == nullptr ? "" : chosen, device.str());
  const at::Tensor places = at::zeros({group.size()}, at::kLong);  // every rank fills its own: the sum is all of them
  auto* of_rank = places.mutable_data_ptr<int64_t>();
  of_rank[group.rank()] = static_cast<int64_t>(std::hash<std::string>()(place));
  group.all_reduce(places).wait();
  for (int64_t rank = 0; rank < group.size(); ++rank) {
    if (rank == group.rank() || of_rank[rank] != of_rank[group.rank()]) continue;
    throw Error(ExitCode::kConfig, fmt::format("ranks {} and {} have one accelerator ({})", group.rank(), rank, place),
                fmt::format("start one process an accelerator; the launcher's local rank chooses it, or {}", variable));
  }
}

std::string weights_fingerprint(const hub::TensorSource& source) {
  constexpr size_t kHashedWhole = size_t{256} << 20;
  constexpr size_t kPage = 4096;
  constexpr size_t kStride = 64 * kPage;
  size_t total = 0;
  for (const hub::TensorView& tensor : source.tensors()) total += tensor.bytes.size();
  Sha256 hash;
  for (const hub::TensorView& tensor : source.tensors()) {
    hash.update(fmt::format("{} {} {}\n", tensor.name, static_cast<int>(tensor.dtype), fmt::join(tensor.shape, ",")));
    if (total <= kHashedWhole) {
      hash.update(tensor.bytes);
      continue;
    }
    for (size_t begin = 0; begin < tensor.bytes.size(); begin += kStride) {
      hash.update(tensor.bytes.subspan(begin, std::min(kPage, tensor.bytes.size() - begin)));
    }
  }
  return hash.finish();
}

}  // namespace fettle::train
