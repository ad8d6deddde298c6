// SPDX-License-Identifier: Apache-2.0
/// Sections of a run and a watchdog over them: a hang is never silent.
///
/// Code says what it does by a SectionMark. A Watchdog stops the program when one section takes longer than its limit:
/// on standard error come one error line (name, section, seconds, what to do) and the stack of the thread that is in
/// the section; then the program ends with 69 (kUnavailable), which a Job controller tries again. That loses nothing
/// but the work since the last checkpoint, because a checkpoint is written aside and renamed.
///
/// A stack line is "  #0  module+0xoffset function"; functions of the program itself have no names there, and the line
/// after the stack is the addr2line command that names them (thread_stack.h).
///
/// Section time is counted in the watchdog's own ticks, not by the clock: what passes while the whole process is
/// stopped (SIGSTOP, a frozen container, a sleeping laptop) does not count, and on an overloaded machine less counts.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fettle {

/// What a run is doing, for the watchdog and for messages about it.
enum class Section { kSetup, kData, kStep, kEvaluation, kSave, kCollective };

/// "setup", "data", "step", "eval", "save", "collective".
const char* to_string(Section section);

/// The innermost section of a thread. For SectionMark.
struct CurrentSection {
  int64_t section = -1;           ///< a Section, or -1 for none
  int64_t began = 0;              ///< the watchdog's clock, in milliseconds, less what inner sections took
  std::array<char, 112> where{};  ///< UTF-8, ended by a zero
};

/// Marks what the calling thread does while this lives. Sections nest and the innermost counts: a section's time is
/// that in which it was the innermost one, so an inner section pauses the outer one. Any thread may have marks, each
/// thread its own. Costs some forty stores, and the outermost one a system call for the thread's number: fit for every
/// micro-batch. Destroyed on the thread and in the order of nesting.
class [[nodiscard]] SectionMark {
 public:
  /// `where`: a detail such as "step 120", cut to its beginning and end if it is longer than 111 bytes.
  explicit SectionMark(Section section, std::string_view where = {});
  ~SectionMark();
  SectionMark(const SectionMark&) = delete;
  SectionMark& operator=(const SectionMark&) = delete;

 private:
  CurrentSection outer_;
  int64_t outer_elapsed_;
};

/// What the main thread is doing, e.g. "step (step 120)"; empty if it is in no section. Callable from any thread.
std::string current_section();

using SectionLimits = std::map<Section, std::chrono::seconds>;

/// Generous, since to end a run that is only slow is worse than to wait; none for data (tokenizing may take hours) and
/// collective (bounded by the process group's own timeout). A step or evaluation is marked anew at every micro-batch.
SectionLimits default_section_limits();

/// default_section_limits() changed by "section=seconds" strings, e.g. {"step=600", "save=0"}; 0: no limit. Throws
/// Error{kUsage} naming the bad entry and the known sections.
SectionLimits parse_section_limits(const std::vector<std::string>& entries);

/// Tells others, e.g. the other ranks, in a line such as "rank 2: save (checkpoint-120) has not ended in 1800 s".
using BeforeExit = std::function<void(const std::string& message)>;

/// Watches the sections of all threads while it lives. At most one lives in a process.
///
/// What it does at the end cannot hold the end up: 8 seconds after the limit at most, the program is gone (a thread
/// that waits for a disk or device beyond the reach of SIGKILL keeps the dead process in the table, which nobody can
/// help).
class Watchdog {
 public:
  /// Sections absent from `limits` or with the limit 0 have none. `name` opens the error line, e.g. "rank 2"; may be
  /// empty. `before_exit` runs beside the printing, on a thread of its own, for 5 seconds at most; it must not rely on
  /// any lock that a hanging thread may hold. Throws Error{kInternal} if a watchdog lives already, {kUnavailable} if no
  /// thread or signal can be had.
  explicit Watchdog(const SectionLimits& limits, std::string name = {}, BeforeExit before_exit = {});
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fettle
