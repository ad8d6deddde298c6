// SPDX-License-Identifier: Apache-2.0
#include "train/ranks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "base/file.h"
#include "base/hash.h"

namespace fettle::train {

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
  std::vector<dist::Pending> pending;
  for (const model::NamedTensor& tensor : tensors) pending.push_back(group.broadcast(tensor.tensor.detach(), 0));
  for (dist::Pending& each : pending) each.wait();
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
