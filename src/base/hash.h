// SPDX-License-Identifier: Apache-2.0
/// Hashes of bytes.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace fettle {

/// A streaming hash by OpenSSL.
class OpenSslHash {
 public:
  ~OpenSslHash();
  OpenSslHash(const OpenSslHash&) = delete;
  OpenSslHash& operator=(const OpenSslHash&) = delete;
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  /// Lower-case hexadecimal digits. Call once.
  std::string finish();

 protected:
  /// `name`: OpenSSL's.
  explicit OpenSslHash(const char* name);

 private:
  void* context_;
};

/// SHA-256 (FIPS 180-4): 64 digits.
class Sha256 : public OpenSslHash {
 public:
  Sha256() : OpenSslHash("SHA256") {}
};

/// SHA-1, 40 digits: only for names that git gave (a file is SHA-1 of "blob <size>\0" and its bytes).
class Sha1 : public OpenSslHash {
 public:
  Sha1() : OpenSslHash("SHA1") {}
};

std::string sha256(std::string_view text);

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

/// Gives `read` the file's bytes in pieces, and releases their pages behind it: a model need not stay in memory to be
/// hashed. Throws as MappedFile::open.
void read_in_pieces(const std::filesystem::path& path, const std::function<void(std::span<const std::byte>)>& read);

/// Hashes a file's bytes after what the hash has had already. Throws as read_in_pieces.
template <typename Hash>
void update_from_file(Hash& hash, const std::filesystem::path& path) {
  read_in_pieces(path, [&hash](std::span<const std::byte> bytes) { hash.update(bytes); });
}

}  // namespace fettle
