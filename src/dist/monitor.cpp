// SPDX-License-Identifier: Apache-2.0
#include "dist/monitor.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "dist/wait.h"

namespace fettle::dist {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Peer {
  Member member;
  std::string beat;
  Clock::time_point changed;
};

int64_t whole_seconds(Clock::duration duration) {
  return std::chrono::duration_cast<seconds>(duration).count();
}

}  // namespace

struct Monitor::State {
  State(std::unique_ptr<Store> own_store, Member own_self, const Pulse& own_pulse)
      : store(std::move(own_store)), self(std::move(own_self)), pulse(own_pulse) {}

  const std::unique_ptr<Store> store;
  const Member self;
  const Pulse pulse;

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Member> others;  ///< to watch from the next round on
  std::string host;            ///< the member that serves the store; empty: the launcher does
  std::string failure;
  std::string finished;  ///< a rank that has left
  bool urgent = false;
  bool stop = false;
  bool ended = false;

  // Of the thread alone.
  std::vector<Peer> peers;
  Clock::time_point last_round;
  int64_t beats = 0;

  void run();
  std::string round(bool is_urgent);
  std::string look(bool is_urgent);
  std::string lost(const StoreLost& error);
};

/// Reads the other hearts. Returns the cause if one has stopped.
std::string Monitor::State::look(bool is_urgent) {
  std::vector<std::string> keys;
  for (const Peer& peer : peers) keys.push_back(beat_key(peer.member.rank));
  const std::vector<std::string> values = store->get(keys);
  const auto now = Clock::now();
  // Whoever was stopped itself must not take the others for dead.
  const bool was_asleep = now - last_round > 3 * pulse.beat;
  last_round = now;
  const Peer* oldest = nullptr;
  for (size_t i = 0; i < peers.size(); ++i) {
    Peer& peer = peers[i];
    if (values[i] != peer.beat || was_asleep) {
      peer.beat = values[i];
      peer.changed = now;
    }
    if (peer.beat == kLeft) {
      const std::scoped_lock lock(mutex);
      finished = peer.member.description();
    }
    if (!is_last_beat(peer.beat) && (oldest == nullptr || peer.changed < oldest->changed)) oldest = &peer;
  }
  if (oldest == nullptr) return "";
  const auto silence = now - oldest->changed;
  if (is_urgent && silence > pulse.gone()) {
    return fmt::format("{} is gone (killed or crashed)", oldest->member.description());
  }
  if (silence <= pulse.peer_timeout) return "";
  return fmt::format("{} has not answered for {} s", oldest->member.description(), whole_seconds(silence));
}

std::string Monitor::State::round(bool is_urgent) {
  store->set(beat_key(self.rank), std::to_string(++beats));
  if (store->has({kFailure})) return store->get({kFailure})[0];
  if (peers.empty()) return "";
  const std::string cause = look(is_urgent);
  return cause.empty() ? "" : store->exchange(kFailure, "", cause);
}

std::string Monitor::State::lost(const StoreLost& error) {
  const std::scoped_lock lock(mutex);
  if (host.empty()) return error.what();
  if (error.is_silent()) return fmt::format("{} has not answered for {} s", host, whole_seconds(pulse.peer_timeout));
  return fmt::format("{} is gone (killed or crashed)", host);
}

void Monitor::State::run() {
  std::unique_lock lock(mutex);
  while (!stop && failure.empty()) {
    for (Member& other : std::exchange(others, {})) {
      peers.push_back({std::move(other), "", Clock::now()});
      last_round = Clock::now();
    }
    const bool is_urgent = urgent;
    lock.unlock();
    std::string cause;
    bool is_over = false;
    try {
      cause = round(is_urgent);
    } catch (const StoreLost& error) {
      // Rank 0 that has ended well takes the store with it.
      is_over = !peers.empty() && peers[0].member.rank == 0 && peers[0].beat == kLeft;
      if (!is_over) cause = lost(error);
    } catch (const std::exception& error) {
      cause = fmt::format("the watch of {} failed: {}", self.description(), error.what());
    }
    lock.lock();
    if (failure.empty()) failure = cause;
    changed.notify_all();
    if (is_over) break;
    if (failure.empty() && !stop)
      changed.wait_for(lock, urgent ? pulse.beat / 4 : pulse.beat, [&] { return stop || urgent != is_urgent; });
  }
  const std::string last_beat = failure.empty() ? kLeft : kFailed;
  lock.unlock();
  try {
    store->set(beat_key(self.rank), last_beat);
    store->has({beat_key(self.rank)});  // an answer: the value has arrived
  } catch (const std::exception&) {     // nobody is left to tell
  }
  lock.lock();
  ended = true;
  changed.notify_all();
}

Monitor::Monitor(std::unique_ptr<Store> store, Member self, const Pulse& pulse) {
  store->set_limit(pulse.peer_timeout);
  state_ = std::make_shared<State>(std::move(store), std::move(self), pulse);
  std::thread([state = state_] { state->run(); }).detach();
}

Monitor::~Monitor() {
  const std::scoped_lock lock(state_->mutex);
  state_->stop = true;
  state_->changed.notify_all();
}

void Monitor::watch(const std::vector<Member>& members, bool hosts_store) {
  const std::scoped_lock lock(state_->mutex);
  for (const Member& member : members) {
    if (member.rank != state_->self.rank) state_->others.push_back(member);
  }
  if (hosts_store) state_->host = members.at(0).description();
}

std::string Monitor::failure() const {
  const std::scoped_lock lock(state_->mutex);
  return state_->failure;
}

std::string Monitor::seek_cause() {
  const milliseconds limit = state_->pulse.gone() + seconds(3);
  std::unique_lock lock(state_->mutex);
  state_->urgent = true;
  state_->changed.notify_all();
  state_->changed.wait_for(lock, limit, [this] { return !state_->failure.empty() || state_->ended; });
  if (!state_->failure.empty()) return state_->failure;
  return state_->finished.empty() ? "" : fmt::format("{} has ended before the others", state_->finished);
}

void Monitor::end(const std::string& failure) {
  std::unique_lock lock(state_->mutex);
  state_->stop = true;
  if (state_->failure.empty()) state_->failure = failure;
  state_->changed.notify_all();
  state_->changed.wait_for(lock, seconds(3), [this] { return state_->ended; });
}

void wait_for_others(Store& store, const std::vector<Member>& others, const Pulse& pulse, milliseconds limit) noexcept {
  try {
    std::vector<std::string> keys;
    keys.reserve(others.size());
    for (const Member& other : others) keys.push_back(beat_key(other.rank));
    std::vector<std::string> before;
    auto changed = Clock::now();
    const auto deadline = changed + limit;
    for (;; std::this_thread::sleep_for(milliseconds(100))) {
      const std::vector<std::string> beats = store.get(keys);
      if (std::ranges::all_of(beats, is_last_beat)) return;
      if (beats != before) changed = Clock::now();
      if (Clock::now() - changed > pulse.gone() || Clock::now() > deadline) return;
      before = beats;
    }
  } catch (const std::exception&) {  // no store, nobody to wait for
  }
}

}  // namespace fettle::dist
