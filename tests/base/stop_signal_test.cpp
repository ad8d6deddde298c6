// SPDX-License-Identifier: Apache-2.0
#include "base/stop_signal.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>

namespace fettle {
namespace {

/// The wait status of a process that does `work` and then ends with 0.
int status_of(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (const int signal : {SIGTERM, SIGINT, SIGHUP})
      std::signal(signal, SIG_DFL);  // a job in the background has others
    work();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

TEST(StopSignal, EndsTheProgramWith75) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    const int status = status_of([signal] {
      handle_stop_signals();
      std::raise(signal);
    });
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 75);
  }
}

TEST(StopSignal, OneThatWasIgnoredBeforeStaysSo) {
  const int status = status_of([] {
    std::signal(SIGHUP, SIG_IGN);  // nohup
    handle_stop_signals();
    std::raise(SIGHUP);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(StopSignal, IsOnlyNotedWhileDeferred) {
  const int status = status_of([] {
    handle_stop_signals();
    const StopDeferral deferral;
    if (stop_signal() != 0) ::_exit(1);
    std::raise(SIGINT);
    ::_exit(stop_signal() == SIGINT ? 3 : 2);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
}

TEST(StopSignal, ASecondOneOfEitherKindEndsItAtOnce) {
  const int status = status_of([] {
    handle_stop_signals();
    const StopDeferral deferral;
    std::raise(SIGTERM);
    std::raise(SIGINT);
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGINT);
}

TEST(StopSignal, ALaunchersRepetitionIsTheSameRequest) {
  const int status = status_of([] {
    handle_stop_signals();
    ignore_repeated_stop_signals();
    const StopDeferral deferral;
    std::raise(SIGINT);
    std::raise(SIGTERM);
    ::_exit(stop_signal() == SIGINT ? 3 : 2);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
}

TEST(StopSignal, OneThatIsIgnoredStaysSo) {
  const int status = status_of([] {
    std::signal(SIGINT, SIG_IGN);
    handle_stop_signals();
    std::raise(SIGINT);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace fettle
