// SPDX-License-Identifier: Apache-2.0
/// Ranks as processes of their own. The test program starts itself again, before any thread of libtorch's exists; the
/// copy calls the named function instead of the tests and ends.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "dist/group.h"
#include "support/free_port.h"
#include "support/temporary_folder.h"

namespace fettle::dist {

/// What a process is told. `function` names a RankFunction.
struct RankSetup {
  std::string function;
  int64_t rank = 0;
  int64_t world_size = 1;
  uint16_t port = 0;
  std::string address = "127.0.0.1";
  bool hosts_store = true;
  int64_t timeout = 60;       ///< seconds
  int64_t beat = 400;         ///< milliseconds
  int64_t peer_timeout = 20;  ///< seconds

  [[nodiscard]] Launch launch() const {
    Launch launch;
    launch.rank = rank;
    launch.world_size = world_size;
    launch.master_address = address;
    launch.master_port = port;
    launch.hosts_store = hosts_store;
    return launch;
  }
  [[nodiscard]] GroupOptions options() const {
    return {std::chrono::seconds(timeout), std::chrono::seconds(peer_timeout), std::chrono::milliseconds(beat)};
  }
};

/// Appends a line to the report that the test reads.
inline void say(const std::string& line) {
  const std::string text = line + "\n";
  const int file = ::open(std::getenv("FETTLE_TEST_REPORT"), O_WRONLY | O_APPEND | O_CREAT, 0644);
  if (::write(file, text.data(), text.size()) != static_cast<ssize_t>(text.size())) std::abort();
  ::close(file);
}

/// Registers a function that a process may run instead of the tests. With a group it is one rank of a run: it ends as
/// the program does, by the error's exit code, or after leave().
class RankFunction {
 public:
  RankFunction(const std::string& name, std::function<void(const RankSetup&)> function) {
    all()[name] = std::move(function);
  }
  RankFunction(const std::string& name, const std::function<void(Group&)>& function)
      : RankFunction(name, std::function<void(const RankSetup&)>([function](const RankSetup& setup) {
                       std::shared_ptr<Group> group;
                       try {
                         group = Group::join(setup.launch(), setup.options());
                         function(*group);
                         group->leave();
                       } catch (const Error& error) {
                         if (group) group->announce_failure(error);
                         throw;
                       }
                     })) {}

  static std::map<std::string, std::function<void(const RankSetup&)>>& all() {
    static std::map<std::string, std::function<void(const RankSetup&)>> functions;
    return functions;
  }
};

/// In a process that was started as a rank, runs its function before the first test and ends.
class RankEnvironment : public ::testing::Environment {
 public:
  void SetUp() override {
    const char* text = std::getenv("FETTLE_TEST_RANK");
    if (text == nullptr) return;
    const nlohmann::json told = nlohmann::json::parse(text);
    const RankSetup setup{told[0], told[1], told[2], told[3], told[4], told[5], told[6], told[7], told[8]};
    int code = 0;
    try {
      RankFunction::all().at(setup.function)(setup);
    } catch (const Error& error) {
      say(fmt::format("error: {}", error.what()));
      code = static_cast<int>(error.code());
    } catch (const std::exception& error) {
      say(fmt::format("exception: {}", error.what()));
      code = 1;
    }
    std::fflush(nullptr);
    std::_Exit(code);
  }
};
inline const auto* const rank_environment = ::testing::AddGlobalTestEnvironment(new RankEnvironment);

struct Outcome {
  int code = -1;  ///< exit code; 128 + the signal that ended it
  std::string report;
  std::string err;
  /// What came after "error: ", empty if nothing did.
  [[nodiscard]] std::string error() const {
    const size_t begin = report.find("error: ");
    return begin == std::string::npos ? "" : report.substr(begin + 7, report.find('\n', begin) - begin - 7);
  }
};

/// One process.
class RankProcess {
 public:
  explicit RankProcess(const RankSetup& setup) {
    const std::string told =
        nlohmann::json{setup.function,    setup.rank,    setup.world_size, setup.port,        setup.address,
                       setup.hosts_store, setup.timeout, setup.beat,       setup.peer_timeout}
            .dump();
    const std::string err = folder_ / "err";
    const std::string report = folder_ / "report";
    process_ = ::fork();
    if (process_ != 0) return;
    ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644), STDERR_FILENO);
    ::setenv("FETTLE_TEST_RANK", told.c_str(), 1);
    ::setenv("FETTLE_TEST_REPORT", report.c_str(), 1);
    ::setenv("OMP_NUM_THREADS", "1", 1);
    ::execl("/proc/self/exe", "test_dist", static_cast<char*>(nullptr));
    ::_exit(127);
  }
  ~RankProcess() {
    if (!has_ended_) {
      ::kill(process_, SIGKILL);
      ::waitpid(process_, nullptr, 0);
    }
  }
  RankProcess(const RankProcess&) = delete;
  RankProcess& operator=(const RankProcess&) = delete;

  [[nodiscard]] pid_t process() const { return process_; }
  void send(int signal) const { ::kill(process_, signal); }

  /// Waits until its report or its log holds `text`.
  void wait_for(const std::string& text) const {
    for (int tries = 0; tries < 1200; ++tries) {
      if (read("report").find(text) != std::string::npos || read("err").find(text) != std::string::npos) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    ADD_FAILURE() << "no '" << text << "' from the process: " << read("report") << read("err");
  }

  /// Waits for its end; a process that hangs for a minute fails the test.
  Outcome end() {
    Outcome outcome;
    int status = 0;
    for (int tries = 0; tries < 1200 && !has_ended_; ++tries) {
      has_ended_ = ::waitpid(process_, &status, WNOHANG) == process_;
      if (!has_ended_) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    EXPECT_TRUE(has_ended_) << "the process hangs: " << read("report") << read("err");
    if (has_ended_) outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.report = read("report");
    outcome.err = read("err");
    return outcome;
  }

 private:
  [[nodiscard]] std::string read(const char* name) const {
    const std::filesystem::path path = folder_ / name;
    return std::filesystem::exists(path) ? read_file(path) : "";
  }

  TemporaryFolder folder_;
  pid_t process_ = -1;
  bool has_ended_ = false;
};

/// All ranks of a run, started together.
class Ranks {
 public:
  explicit Ranks(RankSetup setup) {
    if (setup.port == 0) setup.port = free_port();
    for (setup.rank = 0; setup.rank < setup.world_size; ++setup.rank) {
      ranks_.push_back(std::make_unique<RankProcess>(setup));
    }
  }
  RankProcess& operator[](size_t rank) { return *ranks_[rank]; }
  void wait_for(const std::string& text) {
    for (const auto& rank : ranks_) rank->wait_for(text);
  }
  std::vector<Outcome> end() {
    std::vector<Outcome> outcomes;
    for (const auto& rank : ranks_) outcomes.push_back(rank->end());
    return outcomes;
  }

 private:
  std::vector<std::unique_ptr<RankProcess>> ranks_;
};

}  // namespace fettle::dist
