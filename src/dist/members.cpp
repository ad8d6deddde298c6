// SPDX-License-Identifier: Apache-2.0
#include "dist/members.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "dist/network.h"
#include "dist/wait.h"

namespace fettle::dist {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr const char* kRoster = "roster";
/// Set beside kFailure where it is a mistake of whoever started the ranks: the advice.
constexpr const char* kRefusal = "refusal";
constexpr const char* kWorldSize = "world_size";

std::string member_key(int64_t rank) {
  return fmt::format("member/{}", rank);
}

std::string write_member(const Member& member) {
  return fmt::format("{}\t{}\t{}\t{}\t{}", member.rank, member.host, member.process, member.address, member.token);
}

Member read_member(const std::string& line) {
  std::istringstream fields(line);
  Member member;
  std::string rank;
  std::string process;
  std::getline(fields, rank, '\t');
  std::getline(fields, member.host, '\t');
  std::getline(fields, process, '\t');
  std::getline(fields, member.address, '\t');
  std::getline(fields, member.token, '\t');
  if (member.token.empty()) {
    throw Error(ExitCode::kUnavailable, fmt::format("the store has no member of Fettle in '{}'", line),
                "another program uses this MASTER_PORT: choose another");
  }
  member.rank = std::stoll(rank);
  member.process = std::stoll(process);
  return member;
}

/// Refuses this process. While the list of members is open, the run cannot go on without it, and the others say so too.
[[noreturn]] void refuse(Store& store, const Error& error) {
  if (!store.has({kRoster})) {
    if (error.code() == ExitCode::kConfig)
      store.set(kRefusal, error.hint());  // first: whoever reads the failure looks for it
    store.exchange(kFailure, "", error.what());
  }
  throw Error(error);
}

/// Whether the heart of a rank beats: one value is compared with those of the next seconds.
bool is_alive(Store& store, int64_t rank, const Pulse& pulse) {
  const std::string before = store.get({beat_key(rank)})[0];
  if (is_last_beat(before)) return false;
  Wait wait(Clock::now() + pulse.gone(), pulse.beat / 2);
  while (wait.again([&] { return fmt::format("a sign of life of the process that is rank {} already", rank); })) {
    if (store.get({beat_key(rank)})[0] != before) return true;
  }
  return false;
}

void require_world_size(Store& store, const Launch& launch, const Member& self) {
  const std::string own = std::to_string(launch.world_size);
  const std::string stored = store.exchange(kWorldSize, "", own + '\t' + self.description());
  const std::string theirs = stored.substr(0, stored.find('\t'));
  if (theirs == own) return;
  refuse(store, Error(ExitCode::kConfig,
                      fmt::format("{} was started with world size {}, but {} with {}", self.description(), own,
                                  stored.substr(stored.find('\t') + 1), theirs),
                      "start all ranks of a run with the same number of processes"));
}

std::vector<int64_t> missing_ranks(Store& store, int64_t world_size) {
  std::vector<int64_t> missing;
  for (int64_t rank = 0; rank < world_size; ++rank) {
    if (!store.has({member_key(rank)})) missing.push_back(rank);
  }
  return missing;
}

/// Whether what a store's folder holds is left from an attempt that has ended. `folder` is where keys begin.
bool is_over(Store& store, const std::string& folder, const Pulse& pulse) {
  const auto in = [&](const std::string& key) { return folder + '/' + key; };
  if (store.has({in(kFailure)})) return true;
  if (!store.has({in(kWorldSize)})) return false;
  std::vector<std::string> beats;
  for (int64_t rank = 0; rank < std::stoll(store.get({in(kWorldSize)})[0]); ++rank) {
    if (store.has({in(member_key(rank))})) beats.push_back(in(beat_key(rank)));
  }
  if (beats.empty()) return false;
  const std::vector<std::string> before = store.get(beats);
  if (std::ranges::all_of(before, is_last_beat)) return true;
  Wait wait(Clock::now() + pulse.gone(), pulse.beat / 4);
  while (wait.again([] { return "a sign of life of the ranks that the launcher's store has"; })) {
    if (store.get(beats) != before) return false;
  }
  return true;
}

std::string name_ranks(const std::vector<int64_t>& ranks) {
  return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", "));
}

}  // namespace

std::string Member::description() const {
  return fmt::format("rank {} (host {}, pid {})", rank, host, process);
}

std::string beat_key(int64_t rank) {
  return fmt::format("beat/{}", rank);
}

Member this_process(const Launch& launch) {
  std::random_device random;
  Member self{launch.rank, host_name(), ::getpid(), local_address_towards(launch.master_address, seconds(5)),
              fmt::format("{:08x}{:08x}", random(), random())};
  if (self.address.empty()) self.address = "127.0.0.1";
  return self;
}

bool is_last_beat(const std::string& beat) {
  return beat == kLeft || beat == kFailed;
}

std::string find_attempt(Store& store, const Launch& launch, const Pulse& pulse) {
  constexpr const char* kAttempt = "attempt";
  if (launch.hosts_store) return "attempt/0";
  for (std::string number = store.exchange(kAttempt, "", "0");;) {
    std::string folder = fmt::format("attempt/{}", number);
    if (!is_over(store, folder, pulse)) return folder;
    number = store.exchange(kAttempt, number, std::to_string(std::stoll(number) + 1));
  }
}

void enrol(Store& store, const Launch& launch, const Member& self, const Pulse& pulse) {
  require_world_size(store, launch, self);
  store.exchange(beat_key(self.rank), "", "0");  // whoever finds the member may read its beat
  const std::string key = member_key(self.rank);
  std::string present = store.exchange(key, "", write_member(self));
  while (present != write_member(self)) {
    const Member other = read_member(present);
    if (is_alive(store, self.rank, pulse)) {
      refuse(store,
             Error(ExitCode::kConfig,
                   fmt::format("two processes were started as rank {}: on host {}, pid {}, and on host {}, pid {}",
                               self.rank, other.host, other.process, self.host, self.process),
                   "give every process of a run its own RANK"));
    }
    if (store.has({kRoster})) {
      throw Error(ExitCode::kUnavailable,
                  fmt::format("{} cannot take the place of {}, which is gone: the run has begun", self.description(),
                              other.description()),
                  "start this rank again when the other ranks have ended");
    }
    log::info("rank {}: takes the place of {}, which is gone", self.rank, other.description());
    present = store.exchange(key, present, write_member(self));
  }
}

std::vector<Member> gather_members(Store& store, const Launch& launch, const Member& self, Clock::time_point deadline) {
  const auto began = Clock::now();
  std::vector<std::string> keys;
  for (int64_t rank = 0; rank < launch.world_size; ++rank) keys.push_back(member_key(rank));
  Wait wait(deadline, milliseconds(500));
  // Rank 0 alone closes the list: two that look for themselves may see two processes in the place of one rank.
  while (!store.has({kRoster})) {
    if (store.has({kFailure})) {
      const std::string failure = store.get({kFailure})[0];
      if (store.has({kRefusal})) throw Error(ExitCode::kConfig, failure, store.get({kRefusal})[0]);
      throw Error(ExitCode::kUnavailable, failure);
    }
    if (self.rank == 0 && store.has(keys)) {
      store.set(kRoster, fmt::format("{}", fmt::join(store.get(keys), "\n")));
      continue;
    }
    const auto missing = [&] { return missing_ranks(store, launch.world_size); };
    if (wait.again([&] { return fmt::format("{} of {}", name_ranks(missing()), launch.world_size); })) continue;
    const std::vector<int64_t> absent = missing();
    throw Error(ExitCode::kUnavailable,
                fmt::format("{} of {} did not come within {} s", absent.empty() ? "the list" : name_ranks(absent),
                            launch.world_size,
                            std::chrono::ceil<seconds>(std::max(deadline - began, Clock::duration(0))).count()),
                "see why they did not start; ddp_timeout sets the limit");
  }
  std::vector<Member> members;
  std::istringstream lines(store.get({kRoster})[0]);
  for (std::string line; std::getline(lines, line);) members.push_back(read_member(line));
  if (members.at(static_cast<size_t>(self.rank)).token != self.token) {
    throw Error(ExitCode::kUnavailable,
                fmt::format("{} came too late: the run has begun with {}", self.description(),
                            members[static_cast<size_t>(self.rank)].description()),
                "start this rank again when the other ranks have ended");
  }
  return members;
}

}  // namespace fettle::dist
