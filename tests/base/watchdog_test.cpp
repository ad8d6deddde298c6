// SPDX-License-Identifier: Apache-2.0
#include "base/watchdog.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <link.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace fettle {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

/// A forked process that does `work`, ends with 0, and is killed after a minute.
class Child {
 public:
  explicit Child(const std::function<void()>& work) {
    std::fflush(nullptr);
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe(ends.data()), 0);
    errors_ = ends[0];
    process_ = ::fork();
    if (process_ == 0) {
      ::dup2(ends[1], STDERR_FILENO);
      ::alarm(60);
      work();
      ::_exit(0);
    }
    ::close(ends[1]);
  }
  ~Child() { ::close(errors_); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// Returns once the process is stopped; false if it has ended before.
  [[nodiscard]] bool stop() const {
    ::kill(process_, SIGSTOP);
    int status = 0;
    return ::waitpid(process_, &status, WUNTRACED) == process_ && WIFSTOPPED(status);
  }
  void go_on() const { ::kill(process_, SIGCONT); }

  /// The exit code, or the signal that ended it as a negative number. Nothing of its output is read before that.
  [[nodiscard]] int exit_code() const {
    int status = 0;
    ::waitpid(process_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  /// What it wrote on standard error. Once.
  [[nodiscard]] std::string errors() const {
    std::string text;
    std::array<char, 4096> part;
    for (ssize_t size = 0; (size = ::read(errors_, part.data(), part.size())) > 0;) {
      text.append(part.data(), static_cast<size_t>(size));
    }
    return text;
  }

 private:
  int errors_ = -1;
  pid_t process_ = -1;
};

[[gnu::noinline]] void hang_in_sleep() {
  for (;;) ::sleep(1000);
}

[[gnu::noinline]] void hang_in_loop() {
  for (volatile bool on = true; on;) continue;
}

[[gnu::noinline]] void hang_in_read() {
  std::array<int, 2> ends{};
  char byte = 0;
  if (::pipe(ends.data()) != 0) return;
  while (::read(ends[0], &byte, 1) != 1) continue;
}

/// Blocks all signals in the calling thread but the one that ends a child that hangs.
void block_signals() {
  sigset_t signals;
  ::sigfillset(&signals);
  ::sigdelset(&signals, SIGALRM);
  ::pthread_sigmask(SIG_SETMASK, &signals, nullptr);
}

/// Whether a line of a stack gives an offset in this program, as addr2line takes it, that lies in `function` (or a
/// little after its end).
bool has_call_in(const std::string& stack, void (*function)()) {
  Dl_info info{};
  link_map* map = nullptr;
  ::dladdr1(reinterpret_cast<void*>(function), &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP);
  const uintptr_t first = reinterpret_cast<uintptr_t>(function) - map->l_addr;
  const std::string module = std::filesystem::read_symlink("/proc/self/exe").filename().string() + "+0x";
  for (size_t at = stack.find(module); at != std::string::npos; at = stack.find(module, at + 1)) {
    const uintptr_t offset = std::stoull(stack.substr(at + module.size(), 16), nullptr, 16);
    if (offset >= first && offset < first + 512) return true;
  }
  return false;
}

void pass(milliseconds time) {
  std::this_thread::sleep_for(time);
}

void tell_others(const std::string& message) {
  ::dprintf(STDERR_FILENO, "told: %s\n", message.c_str());
}

TEST(Watchdog, EndsAHangWith69AndItsStack) {
  const auto hang = [](void (*how)()) {
    return [how] {
      const Watchdog watchdog({{Section::kSave, seconds(1)}}, "rank 2", tell_others);
      const SectionMark step(Section::kStep);
      const SectionMark save(Section::kSave, "checkpoint-120");
      how();
    };
  };
  const std::array<void (*)(), 3> ways = {hang_in_sleep, hang_in_loop, hang_in_read};
  const std::array<Child, 3> children = {Child(hang(ways[0])), Child(hang(ways[1])), Child(hang(ways[2]))};
  for (size_t i = 0; i < ways.size(); ++i) {
    EXPECT_EQ(children[i].exit_code(), 69);
    const std::string text = children[i].errors();
    EXPECT_THAT(text, StartsWith("error: rank 2: save (checkpoint-120) has not ended in 1 s; "));
    EXPECT_THAT(text, HasSubstr("set section_timeouts to save=2 or more\n"));
    EXPECT_THAT(text, HasSubstr("told: rank 2: save (checkpoint-120) has not ended in 1 s\n"));
    EXPECT_THAT(text, AllOf(HasSubstr(" in save (checkpoint-120):\n"), HasSubstr("  #0 ")));
    EXPECT_THAT(text, HasSubstr("\nnames: addr2line "));
    EXPECT_TRUE(has_call_in(text, ways[i])) << text;
  }
}

TEST(Watchdog, SeesEveryThreadAndASectionThatGoesOn) {
  const Child background([] {
    const Watchdog watchdog({{Section::kSave, seconds(1)}});
    const SectionMark step(Section::kStep, "step 7");
    std::jthread([] {
      block_signals();
      const SectionMark save(Section::kSave);
      hang_in_sleep();
    }).join();
  });
  // 1.5 s at a time are within the limit, and all of them together are not.
  const Child interrupted([] {
    const Watchdog watchdog({{Section::kStep, seconds(2)}});
    const SectionMark step(Section::kStep);
    for (int i = 0; i < 4; ++i) {
      pass(milliseconds(1500));
      const SectionMark save(Section::kSave);
    }
  });
  const Child deaf([] {
    const Watchdog watchdog({{Section::kData, seconds(1)}});
    const SectionMark data(Section::kData);
    block_signals();
    hang_in_sleep();
  });
  EXPECT_EQ(background.exit_code(), 69);
  const std::string text = background.errors();
  EXPECT_THAT(text, StartsWith("error: save has not ended in 1 s; "));
  EXPECT_TRUE(has_call_in(text, hang_in_sleep)) << text;
  EXPECT_EQ(interrupted.exit_code(), 69);
  EXPECT_THAT(interrupted.errors(), StartsWith("error: step has not ended in 2 s; "));
  EXPECT_EQ(deaf.exit_code(), 69);
  EXPECT_THAT(deaf.errors(), AllOf(HasSubstr("no answer in 2 s"), HasSubstr("State:"), HasSubstr("(sleeping)")));
}

TEST(Watchdog, LeavesAloneWhatIsWithinItsLimit) {
  const Child steps([] {
    const Watchdog watchdog({{Section::kStep, seconds(2)}});
    for (int i = 0; i < 12; ++i) {
      const SectionMark step(Section::kStep);
      pass(milliseconds(300));
    }
  });
  const Child unlimited([] {
    const Watchdog watchdog({{Section::kData, seconds(0)}, {Section::kStep, seconds(2)}});
    const SectionMark step(Section::kStep);
    {
      const SectionMark data(Section::kData);
      pass(milliseconds(2500));
    }
    pass(milliseconds(500));  // the outer section's first half second
    const SectionMark save(Section::kSave);
    pass(milliseconds(2500));
  });
  const Child after([] {
    { const Watchdog watchdog({{Section::kStep, seconds(1)}}); }
    const SectionMark step(Section::kStep);
    pass(milliseconds(2000));
  });
  const Child stopped([] {
    const Watchdog watchdog({{Section::kStep, seconds(2)}});
    const SectionMark step(Section::kStep);
    for (int i = 0; i < 8; ++i) pass(milliseconds(100));
  });
  pass(milliseconds(300));
  ASSERT_TRUE(stopped.stop());
  pass(seconds(5));
  stopped.go_on();
  for (const Child* child : {&steps, &unlimited, &after, &stopped}) {
    EXPECT_EQ(child->exit_code(), 0);
    EXPECT_EQ(child->errors(), "");
  }
}

TEST(Watchdog, EndsWhateverItsLastWordsWaitFor) {
  const Child others([] {
    const Watchdog watchdog({{Section::kSetup, seconds(1)}}, "rank 0", [](const std::string&) { hang_in_sleep(); });
    const SectionMark setup(Section::kSetup);
    hang_in_sleep();
  });
  const Child thrown([] {
    const Watchdog watchdog({{Section::kSetup, seconds(1)}}, "", [](const std::string&) { throw 1; });
    const SectionMark setup(Section::kSetup);
    hang_in_sleep();
  });
  const Child unread([] {
    const int flags = ::fcntl(STDERR_FILENO, F_GETFL);
    ::fcntl(STDERR_FILENO, F_SETFL, flags | O_NONBLOCK);
    while (::write(STDERR_FILENO, "x", 1) == 1) continue;
    ::fcntl(STDERR_FILENO, F_SETFL, flags);
    const Watchdog watchdog({{Section::kSetup, seconds(1)}});
    const SectionMark setup(Section::kSetup);
    hang_in_sleep();
  });
  EXPECT_EQ(others.exit_code(), 69);
  EXPECT_THAT(others.errors(), AllOf(StartsWith("error: rank 0: setup has not ended"), HasSubstr("\n  #0 ")));
  EXPECT_EQ(thrown.exit_code(), 69);
  EXPECT_EQ(unread.exit_code(), 69);
  EXPECT_THAT(unread.errors(), Not(HasSubstr("error")));
}

TEST(Watchdog, IsAloneInItsProcess) {
  {
    const Watchdog first({});
    try {
      const Watchdog second({});
      ADD_FAILURE() << "no Error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kInternal);
    }
  }
  const Watchdog third({});
}

TEST(CurrentSection, IsTheInnermostOfTheMainThread) {
  EXPECT_EQ(current_section(), "");
  {
    const SectionMark step(Section::kStep, "step 120");
    EXPECT_EQ(current_section(), "step (step 120)");
    {
      const SectionMark collective(Section::kCollective);
      EXPECT_EQ(current_section(), "collective");
      std::jthread([] {
        const SectionMark save(Section::kSave);
        EXPECT_EQ(current_section(), "collective");
      }).join();
    }
    EXPECT_EQ(current_section(), "step (step 120)");
  }
  EXPECT_EQ(current_section(), "");
}

TEST(CurrentSection, IsOneShortLine) {
  const SectionMark broken(Section::kData, "a\nb");
  EXPECT_EQ(current_section(), "data (a b)");
  const std::string fits(111, 'x');
  {
    const SectionMark data(Section::kData, fits);
    EXPECT_EQ(current_section(), "data (" + fits + ")");
  }
  const SectionMark data(Section::kData, "begin" + std::string(200, 'x') + "end");
  EXPECT_THAT(current_section(), AllOf(StartsWith("data (begin"), HasSubstr("x…x"), HasSubstr("end)")));
  EXPECT_LT(current_section().size(), 120U);
}

TEST(CurrentSection, IsReadWholeWhileItChanges) {
  const std::array<std::string, 2> where = {std::string(100, 'a'), std::string(100, 'b')};
  const std::array<std::string, 2> expected = {"step (" + where[0] + ")", "save (" + where[1] + ")"};
  std::atomic<bool> enough{false};
  std::jthread reader([&] {
    for (std::array<int, 2> seen{}; seen[0] < 1000 || seen[1] < 1000;) {
      const std::string text = current_section();
      seen[0] += text == expected[0];
      seen[1] += text == expected[1];
      if (!text.empty() && text != expected[0] && text != expected[1]) {
        ADD_FAILURE() << text;
        break;
      }
    }
    enough = true;
  });
  while (!enough) {
    const SectionMark step(Section::kStep, where[0]);
    const SectionMark save(Section::kSave, where[1]);
  }
}

TEST(SectionLimits, AreTheDefaultsWithWhatIsGiven) {
  EXPECT_EQ(parse_section_limits({}), default_section_limits());
  SectionLimits expected = default_section_limits();
  expected[Section::kStep] = seconds(600);
  expected[Section::kSave] = seconds(0);
  EXPECT_EQ(parse_section_limits({"step=600", "save=0"}), expected);
  EXPECT_EQ(expected.size(), 6U);
  for (const auto& [section, limit] : expected) {
    EXPECT_EQ(parse_section_limits({std::string(to_string(section)) + "=7"})[section], seconds(7));
  }
}

TEST(SectionLimits, RefuseABadEntryByName) {
  struct Case {
    std::vector<std::string> entries;
    std::string what;
  };
  const std::vector<Case> cases = {
      {{"save=1", "evaluation=600"}, "'evaluation=600' names no section"},
      {{""}, "'' names no section"},
      {{"=5"}, "'=5' names no section"},
      {{"Step=5"}, "'Step=5' names no section"},
      {{"step"}, "'step' has no whole number of seconds"},
      {{"step="}, "'step=' has no whole number of seconds"},
      {{"step=10m"}, "'step=10m' has no whole number of seconds"},
      {{"step=-1"}, "'step=-1' has no whole number of seconds"},
      {{"step=1000000001"}, "'step=1000000001' has no whole number of seconds"},
      {{"step=99999999999999999999"}, "'step=99999999999999999999' has no whole number of seconds"},
      {{"step=5", "step=6"}, "'step=6' is the second limit of step"},
  };
  for (const Case& bad : cases) {
    try {
      parse_section_limits(bad.entries);
      ADD_FAILURE() << "no Error: " << bad.what;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      EXPECT_THAT(error.what(), AllOf(StartsWith("section_timeouts: "), HasSubstr(bad.what)));
      EXPECT_THAT(error.hint(), HasSubstr("setup, data, step, eval, save, collective"));
    }
  }
}

}  // namespace
}  // namespace fettle
