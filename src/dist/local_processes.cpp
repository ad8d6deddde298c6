// SPDX-License-Identifier: Apache-2.0
#include "dist/local_processes.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

namespace fettle::dist {
namespace {

constexpr std::array kStopSignals = {SIGTERM, SIGINT, SIGHUP};

[[noreturn]] void fail(const char* what) {
  throw Error(ExitCode::kUnavailable, system_error(what, errno).what(), "run the same command again");
}

/// A port that nobody listens at now. Another program may take it before rank 0 does; then rank 0 says so.
uint16_t free_port() {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  const bool found = listener >= 0 && ::bind(listener, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
                     ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  if (!found) fail("cannot find a free port for the processes of this machine");
  ::close(listener);
  return ntohs(address.sin_port);
}

void set(const char* name, const std::string& value) {
  ::setenv(name, value.c_str(), /*overwrite=*/1);
}

/// The environment of all processes of this machine.
void set_node_environment(const Launch& node, int64_t count) {
  const Launch first = first_local_process(node, count);
  set("WORLD_SIZE", std::to_string(first.world_size));
  set("LOCAL_WORLD_SIZE", std::to_string(count));
  set("MASTER_ADDR", node.world_size == 1 ? "127.0.0.1" : node.master_address);
  set("MASTER_PORT", std::to_string(node.world_size == 1 ? free_port() : node.master_port));
}

class Processes {
 public:
  /// Stop signals wait until a process has ended or one arrives; whoever is started gets the mask from before.
  Processes() {
    ::sigemptyset(&awaited_);
    for (const int signal : kStopSignals) ::sigaddset(&awaited_, signal);
    ::sigaddset(&awaited_, SIGCHLD);
    ::sigprocmask(SIG_BLOCK, &awaited_, &before_);
  }
  ~Processes() {
    for (const pid_t process : running_) ::kill(process, SIGKILL);
    ::sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;

  void start(std::vector<char*>& arguments) {
    const pid_t parent = ::getpid();
    const pid_t process = ::fork();
    if (process < 0) fail("cannot start the processes of this machine");
    if (process == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(static_cast<int>(ExitCode::kUnavailable));  // it had ended before
      ::sigprocmask(SIG_SETMASK, &before_, nullptr);
      ::execv("/proc/self/exe", arguments.data());
      ::_exit(static_cast<int>(ExitCode::kUnavailable));
    }
    running_.push_back(process);
  }

  /// Until all have ended; returns what the first to fail ended with. The others then notice that it is gone, save what
  /// is to be saved and end; those that did not within `patience` seconds may still wait for it to come: they are told
  /// to stop. One that does not is killed at last.
  int wait(double patience) {
    constexpr double kLongestSave = 300;
    const timespec second = {1, 0};
    for (double waited = 0; !running_.empty();) {
      const int signal = ::sigtimedwait(&awaited_, nullptr, &second);
      if (std::ranges::find(kStopSignals, signal) != kStopSignals.end()) tell_all(signal);
      collect();
      if (first_failure_ == 0 || signal >= 0) continue;
      if (waited < patience && waited + 1 >= patience) tell_all(SIGTERM);
      if (++waited >= patience + kLongestSave) {
        log::warning("{} processes of this machine do not end: they are killed", running_.size());
        tell_all(SIGKILL);
      }
    }
    return first_failure_;
  }

 private:
  void tell_all(int signal) {
    for (const pid_t process : running_) ::kill(process, signal);
  }

  void collect() {
    int status = 0;
    for (pid_t process = 0; (process = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      std::erase(running_, process);
      const int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
      if (first_failure_ == 0) first_failure_ = code;
    }
  }

  sigset_t awaited_{};
  sigset_t before_{};
  std::vector<pid_t> running_;
  int first_failure_ = 0;
};

}  // namespace

bool starts_local_processes(const Launch& node, int64_t count) {
  if (count == 1 || node.local_world_size == count) return false;
  if (!node.is_one_of_machine && node.local_world_size == 1) return true;
  throw Error(ExitCode::kConfig,
              fmt::format("nproc_per_node is {}, but {} started {} on this machine", count, node.launcher,
                          node.local_world_size),
              "leave nproc_per_node out: the launcher's own number counts");
}

Launch first_local_process(Launch node, int64_t count) {
  node.rank *= count;
  node.world_size *= count;
  node.local_world_size = count;
  return node;
}

int start_local_processes(const Launch& node, const config::DistributedConfig& options,
                          const std::vector<std::string>& arguments) {
  constexpr double kToSave = 10;  // seconds, where a small adapter is saved; a longer save goes on when told to stop
  const int64_t count = options.nproc_per_node;
  log::info("starting {} processes on this machine", count);
  const int64_t first_rank = first_local_process(node, count).rank;
  std::vector<std::string> words = {"fettle"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  set_node_environment(node, count);
  Processes processes;
  for (int64_t local_rank = 0; local_rank < count; ++local_rank) {
    set("LOCAL_RANK", std::to_string(local_rank));
    set("RANK", std::to_string(first_rank + local_rank));
    processes.start(pointers);
  }
  return processes.wait(options.peer_timeout + kToSave);
}

}  // namespace fettle::dist
