// SPDX-License-Identifier: Apache-2.0
/// The stack of another thread of this process, as text: for a thread that hangs.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <string>

namespace fettle {

/// Lets the calling thread be asked for its stack also if it blocks all signals, as background threads tend to.
void accept_stack_requests();

/// While it lives, threads can be asked for their stacks: a real-time signal that nobody had taken has a handler. At
/// most one lives in a process. Throws Error{kInternal} if one does already, {kUnavailable} if no signal is free.
class StackRequests {
 public:
  StackRequests();
  ~StackRequests();
  StackRequests(const StackRequests&) = delete;
  StackRequests& operator=(const StackRequests&) = delete;

  /// Lines "  #0  module+0xoffset function", innermost call first, then the addr2line command that names the program's
  /// own functions, which are not exported: exporting them would let the program's copies of fmt, spdlog and others
  /// take the place of libtorch's. Without any names where a thread hangs inside dlopen, whose lock guards them. A
  /// thread that has not answered in 2 s (an uninterruptible wait, blocked signals) is described by what the kernel
  /// tells of it: state, wchan, system call and, for root, kernel stack. Takes 3 s at most unless the heap is locked.
  /// To be called once in the life of a process: a late answer is not told from that to the next question.
  [[nodiscard]] std::string stack_of(pid_t thread) const;

 private:
  struct sigaction previous_ {};
};

}  // namespace fettle
