// SPDX-License-Identifier: Apache-2.0
#include "train/tensor_stream.h"

#include <cstddef>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

namespace fettle::train {
namespace {

/// The header of the safetensors format: its length as 8 little-endian bytes, then JSON padded to 8 bytes with spaces.
std::string header_of(const std::vector<TensorStream::Entry>& entries,
                      const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const TensorStream::Entry& entry : entries) {
    const int64_t elements = std::accumulate(entry.shape.begin(), entry.shape.end(), int64_t{1}, std::multiplies<>());
    const uint64_t end = offset + static_cast<uint64_t>(elements) * sizeof(float);
    // Not header[name]: ordered_json looks a key up by walking all of them.
    header.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(
        entry.name, nlohmann::ordered_json{{"dtype", "F32"}, {"shape", entry.shape}, {"data_offsets", {offset, end}}});
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

TensorStream::TensorStream(std::filesystem::path file, const std::vector<Entry>& entries,
                           const std::map<std::string, std::string>& metadata)
    : file_(std::move(file)) {
  file_.write(header_of(entries, metadata));
}

void TensorStream::write(const at::Tensor& values) {
  file_.write({static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes()});
}

void TensorStream::finish() {
  file_.commit();
}

}  // namespace fettle::train
