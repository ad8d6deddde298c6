// SPDX-License-Identifier: Apache-2.0
/// A file that arrives in pieces, in any order and over several processes' lives.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace fettle::hub {

/// `<target>.fettle.incomplete` has the whole size from the beginning; `<target>.fettle.ranges` beside it has how far
/// each piece has got, noted after the bytes themselves: a killed process loses nothing that was noted. After a power
/// cut a note may be ahead of its bytes, which the digest finds out; so nothing is fsynced on the way.
///
/// The names are not huggingface_hub's own `<target>.incomplete`: its older versions append to a file of that name and
/// would take this one, with its holes, for complete.
///
/// Where locks do not work, two processes may write the same one: both write the same bytes to the same places.
class PartialFile {
 public:
  /// Opens what there is, or begins. Throws Error{kIo} (disk full), {kPermission}.
  PartialFile(std::filesystem::path target, int64_t size);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  struct Span {
    int64_t first;
    int64_t end;
  };

  [[nodiscard]] int64_t size() const { return size_; }
  [[nodiscard]] size_t pieces() const { return done_.size(); }
  [[nodiscard]] Span piece(size_t index) const;
  /// Bytes of a piece that have arrived. Pieces are independent: each may be used by a thread of its own.
  [[nodiscard]] int64_t done(size_t index) const { return done_[index]; }
  /// The sum over all pieces; while no thread writes.
  [[nodiscard]] int64_t done_bytes() const;

  /// The next bytes of a piece; no more than it lacks.
  void write(size_t index, std::string_view bytes);
  /// Bytes at any place, for a server that gives only whole files; they are not noted.
  void write_at(int64_t offset, std::string_view bytes);

  /// The digest is that of the bytes on the disk: 64 hexadecimal digits are SHA-256, 40 are git's name of the file.
  /// Any other text has no meaning, and true.
  [[nodiscard]] bool has_digest(std::string_view digest) const;
  /// Begins again with nothing.
  void start_over();
  /// Removes what is there, for good.
  void discard();
  /// fsyncs and renames to the target. Nothing is open afterwards, and nothing more can be written.
  void commit();

  /// What the disk must still have room for.
  static int64_t missing_bytes(const std::filesystem::path& target, int64_t size);

 private:
  void open();
  void close();
  [[nodiscard]] std::string header() const;

  std::filesystem::path target_;
  std::filesystem::path data_path_;
  std::filesystem::path ranges_path_;
  int64_t size_;
  int64_t piece_bytes_;
  std::vector<int64_t> done_;
  int data_ = -1;
  int ranges_ = -1;
};

}  // namespace fettle::hub
