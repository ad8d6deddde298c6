// SPDX-License-Identifier: Apache-2.0
#include "base/hash.h"

#include <fettle_text.h>
#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>
#include <cstdint>

#include "base/error.h"

namespace fettle {
namespace {

std::string hexadecimal(std::span<const uint8_t> digest) {
  std::string text;
  for (const uint8_t byte : digest) text += fmt::format("{:02x}", byte);
  return text;
}

EVP_MD_CTX* begin_digest(const EVP_MD* algorithm, const char* name) {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  if (context == nullptr || EVP_DigestInit_ex(context, algorithm, nullptr) != 1) {
    throw Error(ExitCode::kInternal, fmt::format("{} is not available from OpenSSL", name));
  }
  return context;
}

std::string end_digest(void* context) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int length = 0;
  EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context), digest.data(), &length);
  return hexadecimal(std::span(digest.data(), length));
}

FettleBlake3* hasher(void* context) {
  return static_cast<FettleBlake3*>(context);
}

}  // namespace

Sha256::Sha256() : context_(begin_digest(EVP_sha256(), "SHA-256")) {}

Sha256::~Sha256() {
  EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context_));
}

void Sha256::update(std::span<const std::byte> bytes) {
  EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_), bytes.data(), bytes.size());
}

void Sha256::update(std::string_view text) {
  update(std::as_bytes(std::span(text.data(), text.size())));
}

std::string Sha256::finish() {
  return end_digest(context_);
}

std::string sha256(std::string_view text) {
  Sha256 hash;
  hash.update(text);
  return hash.finish();
}

Sha1::Sha1() : context_(begin_digest(EVP_sha1(), "SHA-1")) {}

Sha1::~Sha1() {
  EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context_));
}

void Sha1::update(std::span<const std::byte> bytes) {
  EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_), bytes.data(), bytes.size());
}

void Sha1::update(std::string_view text) {
  update(std::as_bytes(std::span(text.data(), text.size())));
}

std::string Sha1::finish() {
  return end_digest(context_);
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

}  // namespace fettle
