// SPDX-License-Identifier: Apache-2.0
/// The token cache file, in the machine's byte order:
///   header (64 bytes) | fingerprint (64) | offsets int64[documents+1] | records int64[documents] | ids int32[tokens] |
///   labels int32[tokens] | report (JSON) | SHA-256 of all before it (64 hexadecimal digits)
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "data/storage.h"

namespace fettle::data {
namespace fs = std::filesystem;

/// The report; the counts of documents and tokens are in the header.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Preparation, records, truncated, dropped, dropped_pieces, duplicates, ended,
                                   dropped_why, longest, target_tokens)

namespace {

using Storage = TokenDataset::Storage;

constexpr std::array<char, 8> kMagic = {'F', 'E', 'T', 'T', 'L', 'E', 'D', '1'};
constexpr uint64_t kByteOrder = 0x0102030405060708ULL;
constexpr size_t kDigestSize = 64;

struct Header {
  std::array<char, 8> magic = kMagic;
  uint64_t byte_order = kByteOrder;
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t report_bytes = 0;
  int64_t file_bytes = 0;
  std::array<int64_t, 2> reserved = {};
};
static_assert(sizeof(Header) == 64);

/// Hashes what it writes; the digest ends the file.
class HashedFile {
 public:
  explicit HashedFile(const fs::path& path) : file_(path) {}

  template <typename T>
  void write(std::span<T> values) {
    constexpr size_t kPiece = size_t{1} << 24;  // no second copy of a big column
    for (auto bytes = std::as_bytes(values); !bytes.empty(); bytes = bytes.subspan(std::min(bytes.size(), kPiece))) {
      const auto piece = bytes.first(std::min(bytes.size(), kPiece));
      hash_.update(piece);
      file_.write(piece);
    }
  }

  void commit() {
    const std::string digest = hash_.finish();
    file_.write(std::as_bytes(std::span(digest)));
    file_.commit();
  }

 private:
  AtomicFile file_;
  Sha256 hash_;
};

[[noreturn]] void distrust(const fs::path& path, std::string_view why) {
  throw Error(ExitCode::kData, fmt::format("{}: {}", path.string(), why), "the cache is made anew");
}

Header read_header(const fs::path& path, std::span<const std::byte> bytes) {
  Header header;
  if (bytes.size() < sizeof(header) + 2 * kDigestSize) distrust(path, "the file is too short");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kMagic || header.byte_order != kByteOrder) distrust(path, "not a token cache of this version");
  const auto limit = static_cast<int64_t>(bytes.size());
  const bool sane = header.documents >= 0 && header.documents < limit && header.tokens >= 0 && header.tokens < limit &&
                    header.report_bytes >= 0 && header.report_bytes < limit;
  const int64_t expected = static_cast<int64_t>(sizeof(header) + 2 * kDigestSize) + 8 * (2 * header.documents + 1) +
                           8 * header.tokens + header.report_bytes;
  if (!sane || header.file_bytes != limit || expected != limit) distrust(path, "the file is truncated");
  return header;
}

/// Hands out consecutive columns of the mapped bytes.
class Columns {
 public:
  explicit Columns(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <typename T>
  std::span<const T> take(int64_t count) {
    const auto* begin = reinterpret_cast<const T*>(rest_.data());
    rest_ = rest_.subspan(static_cast<size_t>(count) * sizeof(T));
    return {begin, static_cast<size_t>(count)};
  }

 private:
  std::span<const std::byte> rest_;
};

}  // namespace

void write_cache(const fs::path& path, const Storage& storage) {
  const std::string report = nlohmann::json(storage.preparation).dump();
  Header header;
  header.documents = static_cast<int64_t>(storage.records.size());
  header.tokens = static_cast<int64_t>(storage.ids.size());
  header.report_bytes = static_cast<int64_t>(report.size());
  header.file_bytes = static_cast<int64_t>(sizeof(header) + 2 * kDigestSize + storage.offsets.size_bytes() +
                                           storage.records.size_bytes() + storage.ids.size_bytes() +
                                           storage.labels.size_bytes() + report.size());
  if (storage.fingerprint.size() != kDigestSize) throw Error(ExitCode::kInternal, "a fingerprint is not a SHA-256");
  make_directories(path.parent_path());
  remove_stale_temporaries(path.parent_path());
  HashedFile file(path);
  file.write(std::span<const Header>(&header, 1));
  file.write(std::span<const char>(storage.fingerprint));
  file.write(storage.offsets);
  file.write(storage.records);
  file.write(storage.ids);
  file.write(storage.labels);
  file.write(std::span<const char>(report));
  file.commit();
}

std::shared_ptr<Storage> read_cache(const fs::path& path, const std::string& fingerprint) {
  if (!fs::exists(path)) return nullptr;
  auto map = MappedFile::open(path);
  const auto bytes = map->bytes();
  const Header header = read_header(path, bytes);
  Columns columns(bytes.subspan(sizeof(header)));
  const auto written_for = columns.take<char>(kDigestSize);
  if (std::string_view(written_for.data(), kDigestSize) != fingerprint) distrust(path, "made for other data");
  auto storage = std::make_shared<Storage>();
  storage->offsets = columns.take<int64_t>(header.documents + 1);
  storage->records = columns.take<int64_t>(header.documents);
  storage->ids = columns.take<int32_t>(header.tokens);
  storage->labels = columns.take<int32_t>(header.tokens);
  const auto report = columns.take<char>(header.report_bytes);
  const auto digest = columns.take<char>(kDigestSize);
  Sha256 hash;
  hash.update(bytes.first(bytes.size() - kDigestSize));
  if (std::string_view(digest.data(), kDigestSize) != hash.finish()) distrust(path, "the checksum does not match");
  nlohmann::json::parse(report.begin(), report.end()).get_to(storage->preparation);
  storage->preparation.documents = header.documents;
  storage->preparation.tokens = header.tokens;
  storage->fingerprint = fingerprint;
  storage->map = std::move(map);
  return storage;
}

}  // namespace fettle::data
