// SPDX-License-Identifier: Apache-2.0
/// All tensors of a model or an adapter, by Hugging Face name, from safetensors (single or sharded) or GGUF.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "hub/gguf.h"
#include "hub/tensor.h"

namespace fettle::hub {

/// Movable and cheap to copy; the files stay mapped while a copy lives, so views stay valid.
class TensorSource {
 public:
  /// A .safetensors file, or a folder with model.safetensors or model.safetensors.index.json and its shards.
  /// Throws Error{kNoInput} if there is none, {kData} if a file is wrong, naming file and tensor.
  static TensorSource open_safetensors(const std::filesystem::path& file_or_folder);
  /// GgufFile::model_tensors: Hugging Face names; q_proj and k_proj of llama models carry `interleaved_heads`.
  static TensorSource open_gguf(const GgufFile& file);

  /// In file order (shards in name order).
  [[nodiscard]] const std::vector<TensorView>& tensors() const { return tensors_; }
  /// Null if there is no such tensor.
  [[nodiscard]] const TensorView* find(std::string_view name) const;

 private:
  TensorSource(std::vector<std::shared_ptr<const MappedFile>> files, std::vector<TensorView> tensors);

  std::vector<std::shared_ptr<const MappedFile>> files_;
  std::vector<TensorView> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

/// Tensor → file of a folder with model.safetensors or an index. Throws as open_safetensors.
std::map<std::string, std::string> weight_files(const std::filesystem::path& folder);

/// Whether a folder has safetensors weights of a model, in one file or with an index.
bool has_weights(const std::filesystem::path& folder);

}  // namespace fettle::hub
