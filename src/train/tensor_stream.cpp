// SPDX-License-Identifier: Apache-2.0
#include "train/tensor_stream.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "base/file.h"

namespace fettle::train {
namespace {

/// The header of the safetensors format: its length as 8 little-endian bytes, then JSON padded to 8 bytes with spaces.
std::string header_of(const std::vector<TensorStream::Entry>& entries) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  uint64_t offset = 0;
  for (const TensorStream::Entry& entry : entries) {
    const int64_t elements = std::accumulate(entry.shape.begin(), entry.shape.end(), int64_t{1}, std::multiplies<>());
    const uint64_t end = offset + static_cast<uint64_t>(elements) * sizeof(float);
    header[entry.name] = {{"dtype", "F32"}, {"shape", entry.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string json = header.dump();
  json.append((8 - json.size() % 8) % 8, ' ');
  std::string text;
  for (uint64_t length = json.size(), byte = 0; byte < 8; ++byte)
    text.push_back(static_cast<char>(length >> (8 * byte)));
  return text + json;
}

}  // namespace

TensorStream::TensorStream(std::filesystem::path file, const std::vector<Entry>& entries)
    : file_(std::move(file)), unfinished_(file_.string() + ".tmp") {
  descriptor_ = ::open(unfinished_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) throw_system_error("write", file_, errno);
  const std::string header = header_of(entries);
  write_bytes(header.data(), header.size());
}

TensorStream::~TensorStream() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(unfinished_.c_str());
}

void TensorStream::write(const at::Tensor& values) {
  write_bytes(static_cast<const char*>(values.const_data_ptr()), values.nbytes());
}

void TensorStream::write_bytes(const char* data, size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(descriptor_, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_system_error("write", file_, errno);
    data += written;
    size -= static_cast<size_t>(written);
  }
}

void TensorStream::finish() {
  if (::fsync(descriptor_) != 0 || ::rename(unfinished_.c_str(), file_.c_str()) != 0) {
    throw_system_error("write", file_, errno);
  }
  ::close(std::exchange(descriptor_, -1));
}

}  // namespace fettle::train
