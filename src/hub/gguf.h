// SPDX-License-Identifier: Apache-2.0
/// GGUF files (versions 2 and 3, little-endian) as a source of weights and hyper-parameters. Format: docs/gguf.md of
/// ggml.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/file.h"
#include "hub/tensor.h"

namespace fettle::hub {

/// An array in the metadata; its elements are checked but not kept (a tokenizer's would be megabytes).
struct GgufArray {
  uint32_t element_type;
  uint64_t size;
};
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string, GgufArray>;

/// What a GGUF file holds, checked: every string, array, count and offset lies inside the file.
class GgufFile {
 public:
  /// Throws as MappedFile::open, and Error{kData} for anything wrong with the content, naming file and tensor or key.
  static GgufFile open(const std::filesystem::path& path);
  /// The same on bytes that the caller keeps alive; `name` is used in messages.
  static GgufFile parse(std::span<const std::byte> bytes, std::string_view name);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  /// GGUF names; shapes outermost first (the reverse of the file's order).
  [[nodiscard]] const std::vector<TensorView>& tensors() const { return tensors_; }
  /// Null when made by `parse`.
  [[nodiscard]] const std::shared_ptr<const MappedFile>& mapping() const { return mapping_; }

  /// The metadata as Hugging Face config.json keys. Throws Error{kConfig} for an architecture other than llama, qwen2,
  /// qwen3, {kData} for a missing or mistyped key, and for rope scaling that config.json could not state.
  [[nodiscard]] nlohmann::json config() const;

  /// The tensors under their Hugging Face names, with `interleaved_heads` where it applies; rope_freqs, which `config`
  /// turns into rope_scaling, is left out. Throws as `config`, and Error{kData} for a tensor without a counterpart.
  [[nodiscard]] std::vector<TensorView> model_tensors() const;

 private:
  GgufFile() = default;

  std::string name_;
  std::shared_ptr<const MappedFile> mapping_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<TensorView> tensors_;
};

}  // namespace fettle::hub
