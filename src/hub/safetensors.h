// SPDX-License-Identifier: Apache-2.0
/// The safetensors format (github.com/huggingface/safetensors), read and written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hub/tensor.h"

namespace fettle::hub {

/// What the weights of a model are called: one file, or the list of several.
constexpr const char* kSafetensorsFile = "model.safetensors";
constexpr const char* kSafetensorsIndex = "model.safetensors.index.json";

/// One file's content; the views point into the bytes that were parsed.
struct Safetensors {
  std::vector<TensorView> tensors;  ///< in the order of their bytes
  std::map<std::string, std::string> metadata;
};

/// Checks everything the reference implementation checks (and refuses duplicate names, as the format demands): header
/// size and JSON, dtype, shape, offsets that cover the buffer exactly, without holes or overlaps.
/// Throws Error{kData} with `name` (the file) and the tensor in the message.
Safetensors parse_safetensors(std::span<const std::byte> bytes, std::string_view name);

/// tensor → shard file of a model.safetensors.index.json. A shard name with a path in it is refused.
/// Throws Error{kData} with `name` (the file) in the message.
std::map<std::string, std::string> parse_safetensors_index(std::string_view json, std::string_view name);

/// The bytes of a tensor, which are used before the next call.
using TensorBytes = std::function<std::span<const std::byte>(const TensorView&)>;

/// Writes one file: a temporary beside it, fsync, rename, so that a reader sees the old file or the new one. Header and
/// data are laid out as the reference does (8-byte alignment, larger types first, then by name). Returns the BLAKE3
/// hash of what it was given, whatever the disk made of it. Throws Error{kIo} or {kPermission} and leaves no partial
/// file.
std::string write_safetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata);

/// The same for tensors that are not all in memory: the views have no bytes, and `bytes` gives them, in the order in
/// which they are written.
std::string write_safetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata, const TensorBytes& bytes);

/// Writes a model: `folder`/model.safetensors, or, when it is larger than `max_shard_size` bytes,
/// model-00001-of-0000N.safetensors … and model.safetensors.index.json, split and named as transformers does. Files of
/// an earlier save that no longer belong are removed. A tensor larger than the limit gets a shard of its own.
void write_model_safetensors(const std::filesystem::path& folder, std::span<const TensorView> tensors,
                             uint64_t max_shard_size);

/// The same for a model larger than memory.
void write_model_safetensors(const std::filesystem::path& folder, std::span<const TensorView> tensors,
                             uint64_t max_shard_size, const TensorBytes& bytes);

/// The same in the files that `files` names for each tensor, whatever their size.
void write_model_safetensors(const std::filesystem::path& folder, std::span<const TensorView> tensors,
                             const std::map<std::string, std::string>& files, const TensorBytes& bytes);

}  // namespace fettle::hub
