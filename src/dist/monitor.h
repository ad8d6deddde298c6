// SPDX-License-Identifier: Apache-2.0
/// Finds out which rank of a run is gone. A thread shows every second (Pulse::beat) that this rank lives and reads the
/// same of all others, over a connection to the store of its own. What it finds first is written into the store, so
/// that every rank names the same cause and not the rank that ended because of it.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "dist/members.h"
#include "dist/store.h"

namespace fettle::dist {

class Monitor {
 public:
  /// Starts to beat for `self`. `store` is for the monitor alone.
  Monitor(std::unique_ptr<Store> store, Member self, const Pulse& pulse);
  /// Tells the thread to end and does not wait for it: it may be inside a call.
  ~Monitor();
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  /// From now on the other ranks are watched. `members`: all, by rank; `hosts_store`: rank 0 serves the store.
  void watch(const std::vector<Member>& members, bool hosts_store);

  /// Why the run has failed, one sentence; empty if it has not.
  [[nodiscard]] std::string failure() const;

  /// For one whose connection to another rank broke: waits a few seconds until it is known which rank is gone. Empty
  /// if that does not come out.
  [[nodiscard]] std::string seek_cause();

  /// Ends the beat: with kFailed if there is a `failure` or one is known, else with kLeft. Returns when the thread has
  /// ended, or after 3 s.
  void end(const std::string& failure);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

/// Waits until no other rank needs the store any more: each has ended well, knows of the failure, or does not beat.
/// At most `limit`. Never throws.
void wait_for_others(Store& store, const std::vector<Member>& others, const Pulse& pulse,
                     std::chrono::milliseconds limit) noexcept;

}  // namespace fettle::dist
