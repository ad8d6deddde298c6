// SPDX-License-Identifier: Apache-2.0
/// SIGTERM, SIGINT and SIGHUP: how a cluster, a user and a terminal that closes ask a run to stop.
#pragma once

namespace fettle {

/// From now on the first of these signals ends the program at once with exit code 75 (kPreempted) and a line that says
/// so. A program that is process 1 of its container would otherwise not hear SIGTERM at all. Call once, in main.
void handle_stop_signals();

/// While it lives, the first signal is only noted, for whoever asks stop_signal(), with a line that says what happens.
/// A second one has its default action: the program ends at once. Where the deferral ends with a signal noted, nothing
/// more happens.
class StopDeferral {
 public:
  StopDeferral();
  /// What the first signal's line promises: the program ends within so many seconds. 0: nothing is promised yet.
  void set_bound(double seconds);
  ~StopDeferral();
  StopDeferral(const StopDeferral&) = delete;
  StopDeferral& operator=(const StopDeferral&) = delete;
};

/// From now on a second signal within two seconds of the first counts as the same request: a launcher passes on to its
/// processes what the terminal or the container has sent them already.
void ignore_repeated_stop_signals();

/// The signal that was noted, or 0.
int stop_signal() noexcept;
/// "SIGTERM", "SIGINT", "SIGHUP".
const char* signal_name(int signal) noexcept;

}  // namespace fettle
