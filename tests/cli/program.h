// SPDX-License-Identifier: Apache-2.0
/// Runs the program as a user does, in a process of its own.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "cli/commands.h"
#include "support/temporary_folder.h"

namespace fettle::cli {

inline int code(ExitCode value) {
  return static_cast<int>(value);
}

struct Result {
  int code = -1;  ///< exit code; 128 + the signal if one ended it
  std::string out;
  std::string err;
  /// The line that starts with "error: ", empty if there is none.
  [[nodiscard]] std::string error() const {
    const size_t begin = err.find("error: ");
    return begin == std::string::npos ? "" : err.substr(begin, err.find('\n', begin) - begin);
  }
};

/// `largest_file`: RLIMIT_FSIZE of the process, a stand-in for a full disk. `prepare` runs in the process before.
inline Result run_program(const Arguments& arguments, rlim_t largest_file = RLIM_INFINITY,
                          const std::function<void()>& prepare = {}) {
  const TemporaryFolder folder;
  const std::string out = folder / "out";
  const std::string err = folder / "err";
  std::fflush(nullptr);  // or the child would print the rest of a test's line too
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT, 0644), STDOUT_FILENO);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT, 0644), STDERR_FILENO);
    const rlimit limit = {largest_file, largest_file};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::setenv("XDG_CACHE_HOME", folder.path().c_str(), 1);
    if (prepare) prepare();
    const int exit_code = run(arguments);
    std::fflush(nullptr);
    ::_exit(exit_code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  Result result;
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = read_file(out);
  result.err = read_file(err);
  return result;
}

inline std::string stories() {
  return std::filesystem::path(FETTLE_SOURCE_DIR) / "examples/stories260K";
}

/// `fettle train` on the small model with 8 short records, 2 steps, on one thread; more options can be added.
inline Arguments train_arguments(const std::filesystem::path& output_dir, const std::string& train_file,
                                 const Arguments& more = {}) {
  Arguments arguments = {"train",
                         "--model_name_or_path=" + stories(),
                         "--train_file=" + train_file,
                         "--output_dir=" + output_dir.string(),
                         "--max_steps=2",
                         "--per_device_train_batch_size=2",
                         "--max_seq_length=64",
                         "--num_threads=1",
                         "--logging_steps=1"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

inline std::string some_records() {
  std::string lines;
  for (int i = 0; i < 8; ++i) {
    lines += R"({"prompt": "Once upon a time", "completion": " there was a cat number )" + std::to_string(i) + "\"}\n";
  }
  return lines;
}

}  // namespace fettle::cli
