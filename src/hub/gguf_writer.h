// SPDX-License-Identifier: Apache-2.0
/// GGUF files (version 3, little-endian), written. Format: docs/gguf.md of ggml.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hub/gguf_format.h"
#include "hub/tensor.h"

namespace fettle::hub {

/// A file's metadata, encoded as it is added. The caller gives each key once.
class GgufMetadata {
 public:
  void integer(std::string_view key, int64_t value);  ///< uint32, as llama.cpp wants; Error{kData} if it is none
  void number(std::string_view key, double value);    ///< float32
  void flag(std::string_view key, bool value);
  void text(std::string_view key, std::string_view value);
  void integers(std::string_view key, std::span<const int32_t> values);
  void numbers(std::string_view key, std::span<const float> values);
  void texts(std::string_view key, std::span<const std::string> values);

  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] const std::string& bytes() const { return bytes_; }

 private:
  void begin(std::string_view key, GgufValueType type);
  void begin_array(std::string_view key, GgufValueType element, size_t size);

  std::string bytes_;
  uint64_t size_ = 0;
};

/// A tensor to be written.
struct GgufTensor {
  std::string name;                ///< GGUF's
  DType dtype;                     ///< in the file; of a block type only if the rows are whole blocks
  TensorView source;               ///< of a mapped file; has the shape, and is read by read_floats
  int64_t interleaved_heads = 0;   ///< n: the rows of n heads are written in llama.cpp's order; 0: as they are
  std::vector<float> values = {};  ///< not empty: the elements, in place of the source's bytes
};

/// Bytes that the tensor takes in the file.
int64_t gguf_bytes(const GgufTensor& tensor);

/// Writes a file as AtomicFile does: a reader sees the old file or the whole new one. Tensors are read, converted by
/// `threads` threads and written a piece at a time, so that no more than some 100 MB are in memory whatever their size;
/// the sources' pages leave memory. Throws Error{kData} naming the tensor for a value that find_unstorable finds;
/// {kIo} or {kPermission} as AtomicFile.
void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata, std::span<const GgufTensor> tensors,
                int64_t threads);

}  // namespace fettle::hub
