// SPDX-License-Identifier: Apache-2.0
#include "base/atomic_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
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

TEST(AtomicFile, LeavesFilesOfOthersAlone) {
  const TemporaryFolder folder;
  folder.write("a.tmp", "precious");
  write_file(folder / "a", "new");
  EXPECT_EQ(read_file(folder / "a.tmp"), "precious");
  const std::string longest(255, 'n');
  write_file(folder / longest, "as long as a name can be");
  EXPECT_EQ(files_in(folder.path()), 3);
}

TEST(AtomicFile, ReplacesWhatALinkNames) {
  const TemporaryFolder folder;
  folder.write("data/real", "old");
  fs::create_symlink("data/real", folder / "link");
  fs::create_symlink("link", folder / "link to the link");
  fs::create_symlink(folder / "data/absent", folder / "to nothing");
  write_file(folder / "link to the link", "new");
  write_file(folder / "to nothing", "made");
  EXPECT_EQ(read_file(folder / "data/real"), "new");
  EXPECT_EQ(read_file(folder / "data/absent"), "made");
  for (const char* name : {"link", "link to the link", "to nothing"})
    EXPECT_TRUE(fs::is_symlink(folder / name)) << name;
  EXPECT_EQ(files_in(folder / "data"), 2);

  fs::create_symlink("circle", folder / "circle");
  EXPECT_THROW(AtomicFile(folder / "circle"), Error);
}

TEST(AtomicFile, WritesStraightIntoWhatIsNoFile) {
  const TemporaryFolder folder;
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  write_file(pipe, "text");
  std::array<char, 16> text{};
  EXPECT_EQ(::read(reader, text.data(), text.size()), 4);
  EXPECT_TRUE(fs::is_fifo(pipe));

  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  write_file("/proc/self/fd/" + std::to_string(ends[1]), "open");
  EXPECT_EQ(::read(ends[0], text.data(), text.size()), 4);
  for (const int end : {reader, ends[0], ends[1]}) ::close(end);

  const fs::path device = folder / "device";
  if (::mknod(device.c_str(), S_IFCHR | 0600, ::makedev(1, 3)) == 0) {  // a /dev/null of our own; root only
    try {
      write_file(device, "lost");
    } catch (const Error&) {  // a volume without devices
    }
    EXPECT_TRUE(fs::is_character_file(device));
  }
  EXPECT_THROW(write_file(folder.path(), "x"), Error);
}

TEST(AtomicFile, TemporariesOfTheDeadAreRemoved) {
  const TemporaryFolder folder;
  folder.write(".fettle-00000000deadbeef.tmp", "left behind");
  folder.write("thesis.tmp", "precious");
  AtomicFile living(folder / "a");
  remove_stale_temporaries(folder.path());
  EXPECT_EQ(files_in(folder.path()), 2);
  living.write("whole");
  living.commit();
  EXPECT_EQ(read_file(folder / "a"), "whole");
  remove_stale_temporaries(folder / "absent");
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
