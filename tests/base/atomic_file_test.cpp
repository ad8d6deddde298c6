// SPDX-License-Identifier: Apache-2.0
#include "base/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
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

/// More than the buffer and no multiple of anything.
std::string large_content() {
  std::string content;
  for (uint32_t i = 0; content.size() < (size_t{9} << 20) + 12345; i = i * 1664525 + 1013904223) {
    content.append(reinterpret_cast<const char*>(&i), sizeof(i));
  }
  return content;
}

TEST(AtomicFile, HoldsTheSameBytesPastThePageCache) {
  const std::string content = large_content();
  for (const fs::path& root : {fs::temp_directory_path(), fs::path("/dev/shm")}) {
    const fs::path path = root / fmt::format("fettle-atomic-{}", ::getpid());
    AtomicFile file(path, PageCache::kBypass);
    file.write(content.substr(0, 77));
    file.write(content.substr(77));
    file.commit();
    EXPECT_TRUE(read_file(path) == content) << path;
    fs::remove(path);
  }
}

/// Pages of a file in the page cache.
int64_t cached_pages(const fs::path& path) {
  const auto file = MappedFile::open(path);
  std::vector<unsigned char> pages((file->bytes().size() + 4095) / 4096);
  ::mincore(const_cast<std::byte*>(file->bytes().data()), file->bytes().size(), pages.data());
  return std::ranges::count_if(pages, [](unsigned char page) { return (page & 1) != 0; });
}

TEST(AtomicFile, LeavesThePageCacheAlone) {
  const TemporaryFolder folder;
  struct statfs volume {};
  ASSERT_EQ(::statfs(folder.path().c_str(), &volume), 0);
  if (volume.f_type != EXT4_SUPER_MAGIC && volume.f_type != XFS_SUPER_MAGIC) {
    GTEST_SKIP() << "the folder for temporary files is neither ext4 nor XFS: whether O_DIRECT does anything is open";
  }
  const std::string content = large_content();
  for (const PageCache page_cache : {PageCache::kKeep, PageCache::kBypass}) {
    AtomicFile file(folder / "a", page_cache);
    file.write(content);
    file.commit();
    if (page_cache == PageCache::kBypass) {
      EXPECT_LT(cached_pages(folder / "a"), 300) << "the rest beyond 8 MiB, and what was read ahead";
    } else {
      EXPECT_GT(cached_pages(folder / "a"), 2000);
    }
  }
}

/// A write past the page cache that ends in the middle of a block is gone on with through it.
TEST(AtomicFile, NamesTheFileThatMayNotGrow) {
  const TemporaryFolder folder;
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit limit{(rlim_t{4} << 20) + 1000, before.rlim_max};
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::string message;
  try {
    AtomicFile file(folder / "a", PageCache::kBypass);
    file.write(large_content());
    file.commit();
  } catch (const Error& error) {
    message = error.what();
    EXPECT_EQ(error.code(), ExitCode::kIo);
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, handler);
  EXPECT_NE(message.find((folder / "a").string() + ": File too large"), std::string::npos) << message;
  EXPECT_EQ(files_in(folder.path()), 0);
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
