// SPDX-License-Identifier: Apache-2.0
/// Hashes of bytes.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace fettle {

/// Streaming SHA-256 (FIPS 180-4), by OpenSSL.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  /// 64 lower-case hexadecimal digits. Call once.
  std::string finish();

 private:
  void* context_;
};

std::string sha256(std::string_view text);

/// Streaming SHA-1, by OpenSSL: only for names that git gave (a file is SHA-1 of "blob <size>\0" and its bytes).
class Sha1 {
 public:
  Sha1();
  ~Sha1();
  Sha1(const Sha1&) = delete;
  Sha1& operator=(const Sha1&) = delete;
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  /// 40 lower-case hexadecimal digits. Call once.
  std::string finish();

 private:
  void* context_;
};

/// Streaming BLAKE3 (github.com/BLAKE3-team/BLAKE3-specs), by its authors' crate: four times as fast as SHA-256 where
/// the processor has instructions for that, and more where not. b3sum(1) computes the same.
class Blake3 {
 public:
  Blake3();
  ~Blake3();
  Blake3(const Blake3&) = delete;
  Blake3& operator=(const Blake3&) = delete;
  void update(std::span<const std::byte> bytes);
  /// 64 lower-case hexadecimal digits.
  [[nodiscard]] std::string finish() const;

 private:
  void* context_;
};

}  // namespace fettle
