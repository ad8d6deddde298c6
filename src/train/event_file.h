// SPDX-License-Identifier: Apache-2.0
/// TensorBoard's event files.
///
/// Format: TFRecord (tensorflow/core/lib/io/record_writer.h) of Event messages (tensorflow/core/util/event.proto), of
/// which the few fields used here are encoded by hand: libtorch has a protobuf of its own inside, and a second one in
/// the same process asks for trouble.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace fettle::train {

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4).
uint32_t crc32c(std::string_view bytes);

/// One file of a folder that TensorBoard watches. A run that is resumed makes another one beside it.
class EventFile {
 public:
  /// Makes the folder and a new file in it, which makes TensorBoard drop what earlier files say of `first_step` and
  /// later ones. Throws Error{kIo} or {kPermission}.
  EventFile(const std::filesystem::path& folder, int64_t first_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  /// The numbers of a line of metrics.jsonl under transformers' names: train/loss, eval/loss …. Throws Error{kIo}.
  void write(const nlohmann::ordered_json& line);

 private:
  void append(const std::string& event);

  std::filesystem::path path_;
  int descriptor_;
};

}  // namespace fettle::train
