// SPDX-License-Identifier: Apache-2.0
/// A safetensors file of float32 tensors written one after another, for results larger than memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/atomic_file.h"

namespace fettle::train {

/// Names and shapes are known before the first value. The file appears under its name only when it is finished.
class TensorStream {
 public:
  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
  };

  /// Throws Error{kIo} or {kPermission}.
  TensorStream(std::filesystem::path file, const std::vector<Entry>& entries,
               const std::map<std::string, std::string>& metadata = {});

  /// The next entry's values: contiguous float32.
  void write(const at::Tensor& values);
  /// All entries are written: fsyncs and renames.
  void finish();

 private:
  AtomicFile file_;
};

}  // namespace fettle::train
