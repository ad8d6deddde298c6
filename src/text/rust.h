// SPDX-License-Identifier: Apache-2.0
/// Ownership and errors at the border to the Rust library.
#pragma once

#include <fettle_text.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"

namespace fettle::text::rust {

template <auto free>
struct Deleter {
  template <typename T>
  void operator()(T* handle) const {
    free(handle);
  }
};

using TokenizerHandle = std::unique_ptr<FettleTokenizer, Deleter<fettle_tokenizer_free>>;
using TemplateHandle = std::unique_ptr<FettleTemplate, Deleter<fettle_template_free>>;
using ParquetHandle = std::unique_ptr<FettleParquet, Deleter<fettle_parquet_free>>;

/// Bytes that the Rust library allocated.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { fettle_buffer_free(&buffer_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  FettleBuffer* out() { return &buffer_; }
  [[nodiscard]] std::string string() const {
    return buffer_.size == 0 ? std::string() : std::string(reinterpret_cast<const char*>(buffer_.data), buffer_.size);
  }

 private:
  FettleBuffer buffer_{};
};

inline const uint8_t* data(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

/// Throws Error{code, "<where>: <message>", hint} if `status` is not FETTLE_OK. The message is made one line.
void check(int32_t status, const Buffer& error, ExitCode code, std::string_view where, std::string hint = {});

}  // namespace fettle::text::rust
