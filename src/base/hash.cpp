// SPDX-License-Identifier: Apache-2.0
#include "base/hash.h"

#include <fettle_text.h>
#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "base/error.h"
#include "base/file.h"

namespace fettle {
namespace {

std::string hexadecimal(std::span<const uint8_t> digest) {
  std::string text;
  for (const uint8_t byte : digest) text += fmt::format("{:02x}", byte);
  return text;
}

FettleBlake3* hasher(void* context) {
  return static_cast<FettleBlake3*>(context);
}

}  // namespace

OpenSslHash::OpenSslHash(const char* name) : context_(EVP_MD_CTX_new()) {
  const EVP_MD* algorithm = EVP_get_digestbyname(name);
  if (context_ == nullptr || algorithm == nullptr ||
      EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_), algorithm, nullptr) != 1) {
    throw Error(ExitCode::kInternal, fmt::format("{} is not available from OpenSSL", name));
  }
}

OpenSslHash::~OpenSslHash() {
  EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context_));
}

void OpenSslHash::update(std::span<const std::byte> bytes) {
  EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_), bytes.data(), bytes.size());
}

void OpenSslHash::update(std::string_view text) {
  update(std::as_bytes(std::span(text.data(), text.size())));
}

std::string OpenSslHash::finish() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int length = 0;
  EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_), digest.data(), &length);
  return hexadecimal(std::span(digest.data(), length));
}

std::string sha256(std::string_view text) {
  Sha256 hash;
  hash.update(text);
  return hash.finish();
}

Blake3::Blake3() : context_(fettle_blake3_new()) {}

Blake3::~Blake3() {
  fettle_blake3_free(hasher(context_));
}

void Blake3::update(std::span<const std::byte> bytes) {
  fettle_blake3_update(hasher(context_), reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

std::string Blake3::finish() const {
  std::array<uint8_t, 32> digest{};
  fettle_blake3_finish(hasher(context_), digest.data());
  return hexadecimal(digest);
}

void read_in_pieces(const std::filesystem::path& path, const std::function<void(std::span<const std::byte>)>& read) {
  constexpr size_t kPiece = size_t{64} << 20;
  const auto file = MappedFile::open(path);
  for (std::span<const std::byte> rest = file->bytes(); !rest.empty();) {
    const auto piece = rest.first(std::min(rest.size(), kPiece));
    read(piece);
    release_pages(piece);
    rest = rest.subspan(piece.size());
  }
}

}  // namespace fettle
