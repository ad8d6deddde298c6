// SPDX-License-Identifier: Apache-2.0
#include "base/atomic_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "support/temporary_folder.h"

namespace fettle {
namespace {

namespace fs = std::filesystem;

int files_in(const fs::path& folder) {
  return static_cast<int>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(AtomicFile, KeepsTheOrderOfSmallAndLargePieces) {
  const TemporaryFolder folder;
  const std::string large(3 << 20, 'x');
  AtomicFile file(folder / "a");
  file.write("begin");
  file.write(large);
  file.write("end");
  file.commit();
  EXPECT_EQ(read_file(folder / "a"), "begin" + large + "end");
  EXPECT_EQ(files_in(folder.path()), 1);
}

TEST(AtomicFile, IsNotSeenBeforeItIsCommitted) {
  const TemporaryFolder folder;
  folder.write("a", "old");
  {
    AtomicFile file(folder / "a");
    file.write(std::string(2 << 20, 'x'));
    EXPECT_EQ(read_file(folder / "a"), "old");
  }
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_EQ(files_in(folder.path()), 1) << "an abandoned file was left behind";
}

TEST(AtomicFile, NamesAFolderThatIsAbsent) {
  const TemporaryFolder folder;
  try {
    const AtomicFile file(folder / "absent/a");
    FAIL() << "no Error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kNoInput);
    EXPECT_NE(std::string(error.what()).find("absent/a"), std::string::npos) << error.what();
  }
}

TEST(WriteFile, ReplacesTheWholeFile) {
  const TemporaryFolder folder;
  write_file(folder / "a", "a long text");
  write_file(folder / "a", "short");
  EXPECT_EQ(read_file(folder / "a"), "short");
  EXPECT_EQ(files_in(folder.path()), 1);
}

TEST(Sha256, OfAKnownText) {
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");  // FIPS 180-4
}

}  // namespace
}  // namespace fettle
