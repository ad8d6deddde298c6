// SPDX-License-Identifier: Apache-2.0
#include "train/instances.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <utility>

#include "base/environment.h"
#include "base/error.h"
#include "base/file.h"

namespace fettle::train {
namespace {

/// "<ready> <go>": the descriptors through which an instance says that it is ready, and hears that all are.
constexpr const char* kGate = "FETTLE_BENCHMARK_GATE";

[[noreturn]] void fail(const char* what) {
  throw Error(ExitCode::kUnavailable, system_error(what, errno).what(), "use a smaller benchmark_num_instances");
}

/// Both ends are closed where the program is executed anew, unless keep() says otherwise.
class Pipe {
 public:
  Pipe() {
    if (::pipe2(ends_.data(), O_CLOEXEC) != 0) fail("cannot make a pipe");
  }
  ~Pipe() {
    close_reader();
    close_writer();
  }
  Pipe(Pipe&& other) noexcept : ends_(std::exchange(other.ends_, {-1, -1})) {}
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  Pipe& operator=(Pipe&&) = delete;

  [[nodiscard]] int reader() const { return ends_[0]; }
  [[nodiscard]] int writer() const { return ends_[1]; }
  void close_reader() { close_end(ends_[0]); }
  void close_writer() { close_end(ends_[1]); }

 private:
  static void close_end(int& end) {
    if (end >= 0) ::close(end);
    end = -1;
  }
  std::array<int, 2> ends_ = {-1, -1};
};

ssize_t read_some(int descriptor, void* data, size_t size) {
  ssize_t count = 0;
  do count = ::read(descriptor, data, size);
  while (count < 0 && errno == EINTR);
  return count;
}

std::string read_to_end(int descriptor) {
  std::string text;
  std::array<char, 65536> piece{};
  for (ssize_t size = 0; (size = read_some(descriptor, piece.data(), piece.size())) > 0;) {
    text.append(piece.data(), static_cast<size_t>(size));
  }
  return text;
}

struct Instance {
  pid_t process = -1;
  Pipe ready;
  Pipe output;
};

class Instances {
 public:
  Instances() = default;
  ~Instances() {
    for (const Instance& instance : all_) {
      if (instance.process < 0) continue;
      ::kill(instance.process, SIGKILL);
      ::waitpid(instance.process, nullptr, 0);
    }
  }
  Instances(const Instances&) = delete;
  Instances& operator=(const Instances&) = delete;

  void start(const std::vector<char*>& arguments, const std::vector<int>& cpus) {
    Instance instance;
    ::setenv(kGate, fmt::format("{} {}", instance.ready.writer(), go_.reader()).c_str(), /*overwrite=*/1);
    cpu_set_t mask;
    CPU_ZERO(&mask);
    for (const int cpu : cpus) CPU_SET(cpu, &mask);
    const pid_t parent = ::getpid();
    instance.process = ::fork();
    if (instance.process == 0) {
      // Only what signal-safety(7) allows: other threads of the parent may hold locks.
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(static_cast<int>(ExitCode::kUnavailable));
      ::sched_setaffinity(0, sizeof(mask), &mask);
      ::dup2(instance.output.writer(), STDOUT_FILENO);
      ::fcntl(instance.ready.writer(), F_SETFD, 0);
      ::fcntl(go_.reader(), F_SETFD, 0);
      ::execv("/proc/self/exe", arguments.data());
      ::_exit(static_cast<int>(ExitCode::kUnavailable));
    }
    ::unsetenv(kGate);
    if (instance.process < 0) fail("cannot start a process");
    instance.ready.close_writer();
    instance.output.close_writer();
    all_.push_back(std::move(instance));
  }

  /// Lets all go on once they are ready. False where one ended before.
  bool open_gate() {
    char byte = 0;
    for (const Instance& instance : all_) {
      if (read_some(instance.ready.reader(), &byte, 1) != 1) return false;
    }
    go_.close_writer();
    return true;
  }

  InstanceResults collect() {
    InstanceResults results;
    for (Instance& instance : all_) {
      results.outputs.push_back(read_to_end(instance.output.reader()));
      results.exit_code = end_of(instance);
      if (results.exit_code != 0) return results;
    }
    return results;
  }

  /// What the first ended with that is found to have failed.
  int failure() {
    for (;;) {
      for (Instance& instance : all_) {
        int status = 0;
        if (::waitpid(instance.process, &status, WNOHANG) != instance.process) continue;
        instance.process = -1;
        return code_of(status);
      }
      ::usleep(10'000);
    }
  }

 private:
  /// Of an instance that said why it failed; one that was killed could not.
  static int code_of(int status) {
    if (!WIFSIGNALED(status)) return WEXITSTATUS(status);
    throw Error(ExitCode::kUnavailable,
                fmt::format("an instance of the benchmark was ended by {}", ::strsignal(WTERMSIG(status))),
                "if memory ran out, use a smaller benchmark_num_instances");
  }

  static int end_of(Instance& instance) {
    int status = 0;
    while (::waitpid(instance.process, &status, 0) < 0 && errno == EINTR) {
    }
    instance.process = -1;
    return code_of(status);
  }

  Pipe go_;
  std::vector<Instance> all_;
};

}  // namespace

std::vector<std::vector<int>> share_cores(const std::vector<std::vector<int>>& physical, int64_t instances,
                                          int64_t cores) {
  const int64_t there = std::ssize(physical);
  const int64_t each = cores > 0 ? cores : std::max<int64_t>(1, there / instances);
  if (instances * each > there) {
    throw Error(ExitCode::kConfig,
                fmt::format("benchmark_num_instances is {} and each needs {} cores; this process may use {}", instances,
                            each, there),
                "use fewer instances or a smaller benchmark_cores_per_instance");
  }
  std::vector<std::vector<int>> shares(static_cast<size_t>(instances));
  for (int64_t core = 0; core < instances * each; ++core) {
    const std::vector<int>& threads = physical[static_cast<size_t>(core)];
    std::vector<int>& share = shares[static_cast<size_t>(core / each)];
    share.insert(share.end(), threads.begin(), threads.end());
  }
  return shares;
}

InstanceResults run_instances(const std::vector<std::string>& arguments, const std::vector<std::vector<int>>& cpus) {
  std::vector<std::string> words = {"fettle"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  Instances instances;
  for (const std::vector<int>& each : cpus) instances.start(pointers, each);
  if (instances.open_gate()) return instances.collect();
  return {instances.failure(), {}};
}

bool is_instance() {
  return process_environment(kGate).has_value();
}

void wait_for_all() {
  const auto gate = process_environment(kGate);
  if (!gate) return;
  std::istringstream descriptors(*gate);
  int ready = -1;
  int go = -1;
  if (!(descriptors >> ready >> go)) {
    throw Error(ExitCode::kUsage, fmt::format("{} is '{}'", kGate, *gate), "do not set it: fettle benchmark does");
  }
  char byte = 1;
  const bool is_told = ::write(ready, &byte, 1) == 1 && read_some(go, &byte, 1) == 0;
  if (!is_told) {
    throw Error(ExitCode::kUnavailable, "the process that started this instance is gone", "run fettle benchmark again");
  }
  ::close(ready);
  ::close(go);
}

}  // namespace fettle::train
