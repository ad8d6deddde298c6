// SPDX-License-Identifier: Apache-2.0
/// Who takes part in a run: every rank writes its name into the store, rank 0 closes the list, and all read it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "dist/launch.h"
#include "dist/store.h"

namespace fettle::dist {

/// One process of the run.
struct Member {
  int64_t rank = 0;
  std::string host;
  int64_t process = 0;
  std::string address;  ///< numeric, the one that others reach it by
  std::string token;    ///< tells it from every other process that has ever had its rank

  /// "rank 2 (host worker-2, pid 17)"
  [[nodiscard]] std::string description() const;
};

/// This process as a member; its address is the one that leads to the launch's store.
Member this_process(const Launch& launch);

/// How often a rank shows that it lives, and when its silence means what.
struct Pulse {
  std::chrono::milliseconds beat{1000};
  std::chrono::milliseconds peer_timeout{20'000};  ///< a rank that is silent for so long is given up

  /// Silent for so long after its connection broke, or after a process came in its place, a rank is gone.
  [[nodiscard]] std::chrono::milliseconds gone() const { return std::min(7 * beat / 2, peer_timeout); }
};

/// Keys of the store that several parts of the room use.
std::string beat_key(int64_t rank);                 ///< changes every second while the rank lives
inline constexpr const char* kFailure = "failure";  ///< one sentence: why the run fails; the first to know writes it
inline constexpr const char* kLeft = "left";        ///< last value of a beat: the rank has ended well
inline constexpr const char* kFailed = "failed";    ///< last value of a beat: the rank knows of the failure

bool is_last_beat(const std::string& beat);

/// The folder of the store that this attempt of the run has for itself. A store of rank 0 is new with every attempt; a
/// launcher's outlives them, and its launcher may not count them alike on all machines (Launch::store_prefix): then the
/// attempts are numbered here, and whoever finds the latest one over, failed or without a living member, opens the
/// next.
std::string find_attempt(Store& store, const Launch& launch, const Pulse& pulse);

/// Registers this process. Throws Error{kConfig} if a living process has its rank or the run has another world size,
/// {kUnavailable} if the run has begun with another process of its rank, which is gone: this one was restarted in its
/// place, and can join only the next attempt.
void enrol(Store& store, const Launch& launch, const Member& self, const Pulse& pulse);

/// Waits until all ranks have registered. Returns them by rank. Throws Error{kUnavailable} with the ranks that did not
/// come until `deadline`, or with the failure that another rank has announced.
std::vector<Member> gather_members(Store& store, const Launch& launch, const Member& self,
                                   std::chrono::steady_clock::time_point deadline);

}  // namespace fettle::dist
