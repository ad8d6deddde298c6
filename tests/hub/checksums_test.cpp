// SPDX-License-Identifier: Apache-2.0
#include "hub/checksums.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "hub/support.h"

namespace fettle::hub {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

/// SHA-256 of "abc" (FIPS 180-4's example).
constexpr const char* kAbc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

class Checksums : public testing::Test {
 protected:
  Checksums() {
    fs::create_directories(folder_ / "inner");
    folder_.write("a.txt", "abc");
    folder_.write("inner/b with blanks.bin", std::string(100'000, 'x'));
    folder_.write(".lock", "");
  }
  void write_all() const { write_checksums(folder_.path(), files_below(folder_.path())); }

  TemporaryFolder folder_;
};

TEST_F(Checksums, AreThoseOfSha256sum) {
  write_all();
  EXPECT_EQ(read_file(folder_ / kChecksumFile).substr(0, 72), std::string(kAbc) + "  a.txt\n");
  const std::string command = "cd " + folder_.path().string() + " && sha256sum --strict --quiet -c manifest.sha256";
  EXPECT_EQ(std::system(command.c_str()), 0);
  const ChecksumResult result = compare_checksums(folder_.path());
  EXPECT_EQ(result.files, 2);
  EXPECT_EQ(result.bytes, 100'003);
  EXPECT_THAT(result.problems, IsEmpty());
  EXPECT_THAT(result.unlisted, IsEmpty());
}

TEST_F(Checksums, NameWhatIsMissingDamagedOrNew) {
  write_all();
  fs::remove(folder_ / "a.txt");
  std::string damaged(100'000, 'x');
  damaged[77'777] = 'y';
  folder_.write("inner/b with blanks.bin", damaged);
  folder_.write("new", "");
  const ChecksumResult result = compare_checksums(folder_.path());
  EXPECT_THAT(result.problems,
              ElementsAre("a.txt is missing", "inner/b with blanks.bin differs from what was written"));
  EXPECT_THAT(result.unlisted, ElementsAre("new"));
}

TEST_F(Checksums, RefuseAManifestThatIsNone) {
  expect_error([&] { compare_checksums(folder_.path()); }, ExitCode::kNoInput, "fettle verify --write");
  const std::string hash(64, '0');
  for (const std::string& line :
       {std::string("nonsense"), hash, hash + " x", hash + "  ", hash + "  /etc/passwd", hash + "  ../a.txt",
        hash + "  inner/../../a.txt", std::string(64, 'G') + "  a.txt"}) {
    folder_.write(kChecksumFile, line + "\n");
    SCOPED_TRACE(line);
    expect_error([&] { compare_checksums(folder_.path()); }, ExitCode::kData, "manifest.sha256 line 1");
  }
}

TEST_F(Checksums, RefuseAManifestOfNothing) {
  folder_.write(kChecksumFile, "");
  expect_error([&] { compare_checksums(folder_.path()); }, ExitCode::kData, "manifest.sha256 lists no file");
}

TEST_F(Checksums, LeaveOutWhatLiesBehindLinksToFolders) {
  fs::create_directory_symlink(folder_.path(), folder_ / "inner" / "loop");
  EXPECT_THAT(files_below(folder_.path()), ElementsAre("a.txt", "inner/b with blanks.bin"));
}

TEST_F(Checksums, RefuseANameThatTheFormatCannotHold) {
  folder_.write("two\nlines", "");
  expect_error([&] { write_all(); }, ExitCode::kData, "rename the file");
}

}  // namespace
}  // namespace fettle::hub
