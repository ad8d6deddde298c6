// SPDX-License-Identifier: Apache-2.0
#include "base/hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

namespace fettle {
namespace {

TEST(Sha256, HasTheStandardsValues) {  // FIPS 180-4, appendix
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

/// Of test_vectors.json in the specification's repository: bytes 0 … 250, again and again.
TEST(Blake3, HasTheSpecificationsValues) {
  std::vector<uint8_t> bytes(102400);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i % 251);
  const auto hash = [&](size_t size, size_t piece) {
    Blake3 hash;
    for (size_t at = 0; at < size; at += piece) {
      hash.update(std::as_bytes(std::span(bytes).subspan(at, std::min(piece, size - at))));
    }
    return hash.finish();
  };
  EXPECT_EQ(hash(0, 1), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
  EXPECT_EQ(hash(1, 1), "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213");
  for (const size_t piece : {102400, 1024, 777}) {
    EXPECT_EQ(hash(102400, piece), "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085");
  }
}

}  // namespace
}  // namespace fettle
