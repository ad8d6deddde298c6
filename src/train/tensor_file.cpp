// SPDX-License-Identifier: Apache-2.0
#include "train/tensor_file.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "hub/safetensors.h"

namespace fettle::train {

hub::DType file_type(at::ScalarType type) {
  static const std::map<at::ScalarType, hub::DType> table = {
      {at::kDouble, hub::DType::kF64},    {at::kFloat, hub::DType::kF32}, {at::kHalf, hub::DType::kF16},
      {at::kBFloat16, hub::DType::kBF16}, {at::kLong, hub::DType::kI64},  {at::kByte, hub::DType::kU8}};
  const auto found = table.find(type);
  if (found != table.end()) return found->second;
  throw Error(ExitCode::kInternal, fmt::format("safetensors has no type for {} tensors", c10::toString(type)));
}

TensorViews::TensorViews(const std::vector<model::NamedTensor>& tensors) {
  for (const model::NamedTensor& tensor : tensors) {
    const at::Tensor& data = storage_.emplace_back(tensor.tensor.detach().cpu().contiguous());
    views_.push_back({tensor.name, file_type(data.scalar_type()), data.sizes().vec(), bytes_of(data)});
  }
}

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

void require_finite(const std::vector<model::NamedTensor>& tensors) {
  const c10::NoGradGuard no_gradients;
  for (const model::NamedTensor& tensor : tensors) {
    if (tensor.tensor.numel() == 0) continue;
    const auto [least, greatest] = at::aminmax(tensor.tensor.detach());  // one pass; a NaN is both
    if (std::isfinite(least.item<double>()) && std::isfinite(greatest.item<double>())) continue;
    throw Error(ExitCode::kDiverged, fmt::format("tensor {} holds NaN or infinity; nothing was saved", tensor.name),
                "lower learning_rate and run again");
  }
}

std::string write_finite(const std::filesystem::path& file, const std::vector<model::NamedTensor>& tensors,
                         const std::map<std::string, std::string>& metadata) {
  const TensorViews views(tensors);
  std::map<std::string, const model::NamedTensor*> by_name;
  for (const model::NamedTensor& tensor : tensors) by_name[tensor.name] = &tensor;
  return hub::write_safetensors(file, views.views(), metadata, [&](const hub::TensorView& view) {
    require_finite({*by_name.at(view.name)});
    return view.bytes;
  });
}

TensorReader::TensorReader(const std::filesystem::path& file)
    : file_(file), source_(hub::TensorSource::open_safetensors(file)) {}

void TensorReader::fail(const std::string& name, const char* reason) const {
  throw Error(ExitCode::kData, fmt::format("{}: tensor {} {}", file_.string(), name, reason),
              "it belongs to another model or another version; start again with overwrite_output_dir");
}

void TensorReader::read(const model::NamedTensor& target) {
  read_.insert(target.name);
  const hub::TensorView* stored = source_.find(target.name);
  if (stored == nullptr) fail(target.name, "is missing");
  if (stored->shape != target.tensor.sizes().vec()) fail(target.name, "has another shape");
  if (stored->dtype != file_type(target.tensor.scalar_type()) || !target.tensor.is_contiguous())
    fail(target.name, "has another type");
  const c10::NoGradGuard no_gradients;
  auto* data = const_cast<std::byte*>(stored->bytes.data());  // from_blob has no const form
  target.tensor.detach().copy_(at::from_blob(data, stored->shape, target.tensor.options().device(at::kCPU)));
}

void TensorReader::finish() const {
  for (const hub::TensorView& stored : source_.tensors()) {
    if (!read_.contains(stored.name)) fail(stored.name, "is not part of this run");
  }
}

void read_tensors(const std::filesystem::path& file, const std::vector<model::NamedTensor>& tensors) {
  TensorReader reader(file);
  for (const model::NamedTensor& tensor : tensors) reader.read(tensor);
  reader.finish();
}

}  // namespace fettle::train
