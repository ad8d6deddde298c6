// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/file.h"

namespace fettle::model {
namespace {

constexpr int64_t kConversionBlock = 1 << 16;  // elements: small enough for the second-level cache

bool is_stored_as(const hub::TensorView& view, at::ScalarType type) {
  const bool same = (view.dtype == hub::DType::kF32 && type == at::kFloat) ||
                    (view.dtype == hub::DType::kBF16 && type == at::kBFloat16);
  const auto address = reinterpret_cast<uintptr_t>(view.bytes.data());
  return same && view.interleaved_heads == 0 && address % c10::elementSize(type) == 0;
}

at::Tensor convert(const hub::TensorView& view, at::ScalarType type) {
  at::Tensor result = at::empty(view.shape, type);
  const int64_t count = result.numel();
  const int64_t columns = view.shape.empty() ? 1 : std::max<int64_t>(1, view.shape.back());
  const int64_t rows = std::max<int64_t>(1, kConversionBlock / columns);  // whole rows are fastest to read
  const int64_t block = rows * columns;
  at::parallel_for(0, (count + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * block;
      const auto size = static_cast<size_t>(std::min(block, count - first));
      if (type == at::kFloat) {
        hub::read_floats(view, {result.mutable_data_ptr<float>() + first, size}, first);
        continue;
      }
      buffer.resize(size);
      hub::read_floats(view, buffer, first);
      std::ranges::transform(buffer, result.mutable_data_ptr<c10::BFloat16>() + first,
                             [](float value) { return c10::BFloat16(value); });
    }
  });
  return result;
}

// Written by older versions of transformers, or a second copy of a tied weight.
bool is_tolerated(std::string_view name, bool tied_embeddings) {
  return name.ends_with("rotary_emb.inv_freq") || (tied_embeddings && name == "lm_head.weight");
}

// "a, b, c and 12 more"
std::string first_few(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  const std::vector<std::string> shown(names.begin(),
                                       names.begin() + static_cast<std::ptrdiff_t>(std::min(kShown, names.size())));
  return names.size() > kShown ? fmt::format("{} and {} more", fmt::join(shown, ", "), names.size() - kShown)
                               : fmt::format("{}", fmt::join(shown, ", "));
}

}  // namespace

at::ScalarType torch_type(hub::DType type) {
  switch (type) {
    case hub::DType::kF64:
      return at::kDouble;
    case hub::DType::kF16:
      return at::kHalf;
    case hub::DType::kBF16:
      return at::kBFloat16;
    default:
      return at::kFloat;
  }
}

at::Tensor read_tensor(const std::shared_ptr<const hub::TensorSource>& source, const hub::TensorView& view,
                       at::ScalarType type) {
  if (!is_stored_as(view, type)) {
    at::Tensor converted = convert(view, type);
    release_pages(view.bytes);
    return converted;
  }
  auto* data = const_cast<std::byte*>(view.bytes.data());  // from_blob has no const form
  return at::from_blob(
      data, view.shape, [source](void*) {}, at::TensorOptions().dtype(type));
}

std::vector<TensorShape> stored_tensors(const DecoderSpec& spec, const hub::TensorSource& source) {
  std::vector<TensorShape> expected = expected_tensors(spec);
  if (!spec.quantization) return expected;
  std::vector<TensorShape> stored;
  for (TensorShape& tensor : expected) {
    const bool is_matrix = is_in_layer(tensor.name) && tensor.shape.size() == 2;
    std::vector<hub::TensorView> parts;
    if (is_matrix) {
      parts =
          hub::expected_tensors(*spec.quantization, source, module_of(tensor.name), tensor.shape[0], tensor.shape[1]);
    }
    for (hub::TensorView& part : parts) stored.push_back({std::move(part.name), std::move(part.shape)});
    if (parts.empty()) stored.push_back(std::move(tensor));
  }
  return stored;
}

bool is_finite(const hub::TensorView& view) {
  const int64_t count = hub::element_count(view);
  std::atomic<bool> finite = true;
  at::parallel_for(0, (count + kConversionBlock - 1) / kConversionBlock, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    for (int64_t i = begin; i < end && finite; ++i) {
      buffer.resize(static_cast<size_t>(std::min(kConversionBlock, count - i * kConversionBlock)));
      hub::read_floats(view, buffer, i * kConversionBlock);
      if (!std::ranges::all_of(buffer, [](float value) { return std::isfinite(value); })) finite = false;
    }
  });
  return finite;
}

void check_names(const hub::TensorSource& source, const std::vector<TensorShape>& expected, bool tied_embeddings,
                 std::string_view what) {
  std::vector<std::string> missing;
  std::vector<std::string> misshaped;
  std::vector<std::string> extra;
  std::set<std::string_view> known;
  for (const TensorShape& tensor : expected) {
    known.insert(tensor.name);
    const hub::TensorView* view = source.find(tensor.name);
    if (view == nullptr) {
      missing.push_back(tensor.name);
    } else if (view->shape != tensor.shape) {
      misshaped.push_back(fmt::format("{} is [{}] and should be [{}]", tensor.name, fmt::join(view->shape, ", "),
                                      fmt::join(tensor.shape, ", ")));
    }
  }
  for (const hub::TensorView& view : source.tensors()) {
    if (!known.contains(view.name) && !is_tolerated(view.name, tied_embeddings)) {
      extra.push_back(view.name);
    }
  }
  std::vector<std::string> problems;
  if (!missing.empty()) {
    problems.push_back("missing " + first_few(missing));
  }
  if (!misshaped.empty()) {
    problems.push_back("wrong shape: " + first_few(misshaped));
  }
  if (!extra.empty()) {
    problems.push_back("unknown " + first_few(extra));
  }
  if (!problems.empty()) {
    throw Error(ExitCode::kData,
                fmt::format("the tensors of {} do not fit its configuration: {}", what, fmt::join(problems, "; ")),
                "the files belong to another model or are incomplete");
  }
}

}  // namespace fettle::model
