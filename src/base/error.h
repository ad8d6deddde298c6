// SPDX-License-Identifier: Apache-2.0
/// The one exception type of Fettle and the exit codes it maps to.
#pragma once

#include <exception>
#include <string>

namespace fettle {

/// Exit codes of the program, after sysexits.h, so that a Job controller can tell a user's mistake (64-66, 76-78:
/// do not retry) from the cluster's (69-75: retry).
enum class ExitCode : int {
  kOk = 0,
  kUsage = 64,        ///< unknown or malformed option
  kData = 65,         ///< the data or model file is wrong
  kNoInput = 66,      ///< an input file or folder is missing
  kUnavailable = 69,  ///< a hub or a peer does not answer
  kInternal = 70,     ///< a bug in Fettle
  kOutOfMemory = 71,
  kIo = 74,          ///< disk full, read-only output, failed read or write
  kPreempted = 75,   ///< stopped by a signal with the state saved; run the same command again
  kDiverged = 76,    ///< loss or gradient became NaN or infinite
  kPermission = 77,  ///< token missing or refused, or a file that may not be read
  kConfig = 78,      ///< options that are each valid but contradict each other or the model
};

/// What went wrong, where, and what to do about it. Thrown anywhere, caught once in main, printed as one line
/// "error: <what>; <hint>". `what` names the place (file, line, record, option, tensor).
class Error : public std::exception {
 public:
  Error(ExitCode code, std::string what, std::string hint = {});

  [[nodiscard]] const char* what() const noexcept override { return message_.c_str(); }
  [[nodiscard]] ExitCode code() const noexcept { return code_; }
  [[nodiscard]] const std::string& hint() const noexcept { return hint_; }

 private:
  ExitCode code_;
  std::string message_;
  std::string hint_;
};

}  // namespace fettle
