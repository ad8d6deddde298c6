// SPDX-License-Identifier: Apache-2.0
#include "base/file_lock.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>

#include "base/error.h"
#include "support/temporary_folder.h"

namespace fettle {
namespace {

TEST(FileLock, OneHolderAtATime) {
  const TemporaryFolder folder;
  std::optional<FileLock> first(folder / "lock");
  EXPECT_TRUE(first->try_lock());
  FileLock second(folder / "lock");
  EXPECT_FALSE(second.try_lock());
  first.reset();
  EXPECT_TRUE(second.try_lock());
}

TEST(FileLock, IsGivenUpByAProcessThatIsKilled) {
  const TemporaryFolder folder;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    FileLock lock(folder / "lock");
    lock.lock();
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  FileLock lock(folder / "lock");
  EXPECT_FALSE(lock.try_lock());
  ::kill(child, SIGKILL);
  lock.lock();  // would wait for ever
  ::waitpid(child, nullptr, 0);
}

TEST(FileLock, NeedsAFolder) {
  const TemporaryFolder folder;
  try {
    const FileLock lock(folder / "none" / "lock");
    FAIL() << "made";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kNoInput);
  }
}

}  // namespace
}  // namespace fettle
