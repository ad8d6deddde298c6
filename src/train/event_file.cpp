// SPDX-License-Identifier: Apache-2.0
#include "train/event_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>

#include "base/file.h"

namespace fettle::train {
namespace {

constexpr uint32_t kCrc32cPolynomial = 0x82F63B78;  // reflected

// Numbers of the fields, from event.proto and summary.proto.
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
constexpr int kSummaryValue = 1, kValueTag = 1, kValueSimple = 2;
constexpr int kSessionStatus = 1, kSessionStart = 1;
// Kinds of a field on the wire (protobuf.dev/programming-guides/encoding).
constexpr int kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

/// Little-endian bytes, as all of these formats have them.
template <class T>
void append_fixed(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little);
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

void append_key(std::string& out, int field, int kind) {
  append_varint(out, static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(kind));
}

void append_bytes(std::string& out, int field, std::string_view bytes) {
  append_key(out, field, kBytes);
  append_varint(out, bytes.size());
  out.append(bytes);
}

void append_integer(std::string& out, int field, int64_t value) {
  append_key(out, field, kVarint);
  append_varint(out, static_cast<uint64_t>(value));
}

std::string begin_event(int64_t step) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  append_key(event, kWallTime, kFixed64);
  append_fixed(event, now.count());
  append_integer(event, kStep, step);
  return event;
}

void append_scalar(std::string& summary, std::string_view tag, double number) {
  std::string value;
  append_bytes(value, kValueTag, tag);
  append_key(value, kValueSimple, kFixed32);
  append_fixed(value, static_cast<float>(number));
  append_bytes(summary, kSummaryValue, value);
}

/// A checksum as TFRecord stores it.
uint32_t masked_crc(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8U;
}

/// transformers writes "eval_loss" as eval/loss and all else as train/….
std::string tag(std::string_view name) {
  return name.starts_with("eval_") ? fmt::format("eval/{}", name.substr(5)) : fmt::format("train/{}", name);
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kCrc32cPolynomial : 0);
  }
  return ~crc;
}

EventFile::EventFile(const std::filesystem::path& folder, int64_t first_step) {
  make_directories(folder);
  // TensorBoard reads the files of a folder in the order of their names.
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  path_ = folder / fmt::format("events.out.tfevents.{}.{}.fettle",
                               std::chrono::duration_cast<std::chrono::microseconds>(now).count(), ::getpid());
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw_system_error("write", path_, errno);
  std::string event = begin_event(0);
  append_bytes(event, kFileVersion, "brain.Event:2");
  append(event);
  std::string session;
  append_integer(session, kSessionStatus, kSessionStart);
  event = begin_event(first_step);
  append_bytes(event, kSessionLog, session);
  append(event);
}

EventFile::~EventFile() {
  ::close(descriptor_);
}

void EventFile::write(const nlohmann::ordered_json& line) {
  std::string summary;
  for (const auto& [name, value] : line.items()) {
    if (name != "step" && value.is_number()) append_scalar(summary, tag(name), value.get<double>());
  }
  std::string event = begin_event(line.at("step").get<int64_t>());
  append_bytes(event, kSummary, summary);
  append(event);
}

void EventFile::append(const std::string& event) {
  std::string record;
  append_fixed(record, static_cast<uint64_t>(event.size()));
  append_fixed(record, masked_crc(record));
  record += event;
  append_fixed(record, masked_crc(event));
  write_all(descriptor_, record, path_);
}

}  // namespace fettle::train
