// SPDX-License-Identifier: Apache-2.0
#include "base/file_lock.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <optional>
#include <thread>

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
    if (!lock.try_lock()) ::_exit(1);
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  FileLock lock(folder / "lock");
  EXPECT_FALSE(lock.try_lock());
  ::kill(child, SIGKILL);
  EXPECT_TRUE(lock.lock_unless_silent(std::chrono::seconds(30)));  // would wait for all of it
  ::waitpid(child, nullptr, 0);
}

TEST(FileLock, GivesUpOnAHolderThatShowsNoLife) {
  using std::chrono::milliseconds;
  const TemporaryFolder folder;
  FileLock holder(folder / "lock");
  ASSERT_TRUE(holder.try_lock());
  FileLock waiter(folder / "lock");
  EXPECT_FALSE(waiter.lock_unless_silent(milliseconds(300)));
  const auto began = std::chrono::steady_clock::now();
  std::jthread beat([&holder](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      holder.touch();
      std::this_thread::sleep_for(milliseconds(100));
    }
  });
  std::jthread end([&beat] {
    std::this_thread::sleep_for(milliseconds(1500));
    beat.request_stop();
  });
  EXPECT_FALSE(waiter.lock_unless_silent(milliseconds(1000)));
  EXPECT_GE(std::chrono::steady_clock::now() - began, milliseconds(2000)) << "it lived for longer than the limit";
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
