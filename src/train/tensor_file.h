// SPDX-License-Identifier: Apache-2.0
/// Tensors to and from safetensors files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "hub/tensor.h"
#include "hub/tensor_source.h"
#include "model/decoder.h"

namespace fettle::train {

/// Tensors as views for the writers of hub. Owns what it had to make contiguous; the views live as long as it does.
class TensorViews {
 public:
  explicit TensorViews(const std::vector<model::NamedTensor>& tensors);
  [[nodiscard]] const std::vector<hub::TensorView>& views() const { return views_; }

 private:
  std::vector<at::Tensor> storage_;
  std::vector<hub::TensorView> views_;
};

/// A tensor's type as files name it. Throws Error{kInternal} if safetensors has none.
hub::DType file_type(at::ScalarType type);

/// A tensor's bytes, which live as long as it does. It is contiguous and on the CPU.
std::span<const std::byte> bytes_of(const at::Tensor& tensor);

/// Throws Error{kDiverged} naming the first tensor with a NaN or an infinity.
void require_finite(const std::vector<model::NamedTensor>& tensors);

/// hub::write_safetensors for tensors on the CPU. Throws Error{kDiverged} naming one with a NaN or an infinity.
std::string write_finite(const std::filesystem::path& file, const std::vector<model::NamedTensor>& tensors,
                         const std::map<std::string, std::string>& metadata);

/// Reads tensors one by one from a safetensors file that holds exactly those that are asked for.
class TensorReader {
 public:
  explicit TensorReader(const std::filesystem::path& file);
  /// Overwrites `target` in place, bit for bit. Throws Error{kData} if the file lacks it or has it with another shape
  /// or type.
  void read(const model::NamedTensor& target);
  /// Throws Error{kData} naming a tensor of the file that was not read.
  void finish() const;

 private:
  [[noreturn]] void fail(const std::string& name, const char* reason) const;

  std::filesystem::path file_;
  hub::TensorSource source_;
  std::set<std::string> read_;
};

/// Overwrites `tensors` in place, bit for bit, from a file that holds exactly these names, shapes and types.
/// Throws Error{kData} naming the tensor that is missing, extra or different.
void read_tensors(const std::filesystem::path& file, const std::vector<model::NamedTensor>& tensors);

}  // namespace fettle::train
