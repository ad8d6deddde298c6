// SPDX-License-Identifier: Apache-2.0
#include "dist/group.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <deque>
#include <exception>
#include <iterator>
#include <thread>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/utf8.h"
#include "base/watchdog.h"
#include "dist/gloo.h"
#include "dist/members.h"
#include "dist/monitor.h"
#include "dist/network.h"
#include "dist/store.h"
#include "dist/wait.h"
#include "dist/worker.h"

namespace fettle::dist {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr const char* kPeerHint = "its own log says why; start the run again, which resumes from the last checkpoint";

/// Waits for `progress`, as long as the run has not failed. Throws Error{kUnavailable} for what ended it otherwise.
void await(const Progress& progress, Monitor& monitor, const std::string& name, seconds limit) {
  constexpr milliseconds kLook(100);
  const auto deadline = Clock::now() + limit + seconds(5);  // the backend's own limit comes first
  for (bool has_ended = false; !has_ended;) {
    has_ended = progress.wait_for(kLook);
    const std::string failure = monitor.failure();
    if (!failure.empty()) throw Error(ExitCode::kUnavailable, failure, kPeerHint);
    if (!has_ended && Clock::now() > deadline) {
      throw Error(ExitCode::kUnavailable, fmt::format("{} did not end within {} s", name, limit.count()),
                  "all ranks live: one is far slower than the others, or ddp_timeout is too short");
    }
  }
  if (!progress.error()) return;
  try {
    std::rethrow_exception(progress.error());
  } catch (const Error&) {
    throw;                           // of this room itself
  } catch (const std::exception&) {  // of c10d: a consequence, whose cause is sought
  }
  const std::string cause = monitor.seek_cause();
  if (!cause.empty()) throw Error(ExitCode::kUnavailable, cause, kPeerHint);
  throw Error(ExitCode::kUnavailable, fmt::format("{} failed: {}", name, reason(progress.error())),
              "all ranks answer: see the network between them, and ddp_timeout if one is far slower than the others");
}

/// Where `value` parts from `other`, with a little before and after.
std::string excerpt(const std::string& value, const std::string& other) {
  constexpr size_t kBefore = 40;
  constexpr size_t kLength = 120;
  const auto parts = static_cast<size_t>(std::ranges::mismatch(value, other).in1 - value.begin());
  const size_t begin = parts > kBefore ? parts - kBefore : 0;
  const size_t end = std::min(value.size(), begin + kLength);
  return fmt::format("'{}{}{}'", begin > 0 ? "…" : "", one_line(value.substr(begin, end - begin)),
                     end < value.size() ? "…" : "");
}

/// What a collective works on: the tensor itself, or a copy of it where the network can reach it.
at::Tensor on_host(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "collective: a tensor that is not contiguous");
  return tensor.cpu();
}

/// Where what arrives for a tensor arrives: nothing of a device is read.
at::Tensor place_on_host(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "collective: a tensor that is not contiguous");
  return tensor.is_cpu() ? tensor : at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
}

/// The address that other machines reach this process by. The route to the store is the loopback on its own machine,
/// which nobody else can use.
std::string reachable_address(const Member& self, const std::vector<Member>& members) {
  if (!is_loopback(self.address)) return self.address;
  const auto elsewhere =
      std::ranges::find_if(members, [](const Member& member) { return !is_loopback(member.address); });
  if (elsewhere == members.end()) return self.address;
  const std::string address = local_address_towards(elsewhere->address, seconds(1));
  return address.empty() ? self.address : address;
}

}  // namespace

struct Pending::Operation {
  std::shared_ptr<Progress> progress;
  std::shared_ptr<Monitor> monitor;
  std::string name;
  seconds limit;
  at::Tensor result = {};  ///< receives the host's values at the end, if it is another tensor
  at::Tensor host = {};
};

void Pending::wait() {
  if (!operation_) return;
  const auto operation = std::exchange(operation_, nullptr);
  const SectionMark mark(Section::kCollective, operation->name);
  await(*operation->progress, *operation->monitor, operation->name, operation->limit);
  if (operation->result.defined() && !operation->result.is_cpu()) operation->result.copy_(operation->host);
}

bool Pending::has_ended() const {
  return !operation_ || operation_->progress->wait_for(milliseconds(0));
}

struct Group::Connection {
  Launch launch;
  GroupOptions options;
  Pulse pulse;
  std::unique_ptr<Store> store;
  std::string attempt;  ///< folder of the store
  Member self;
  std::vector<Member> others;
  std::shared_ptr<Monitor> monitor;
  std::shared_ptr<Gloo> gloo;
  bool has_left = false;

  [[nodiscard]] bool hosts_store() const { return launch.hosts_store && launch.rank == 0; }

  void meet();
  [[nodiscard]] std::unique_ptr<Store> another_connection(Clock::time_point deadline) const;
  void connect_peers(const std::vector<Member>& members);
  void announce(const std::string& cause) noexcept;
};

std::unique_ptr<Store> Group::Connection::another_connection(Clock::time_point deadline) const {
  auto connection = Store::connect(launch, deadline);
  connection->enter(attempt);
  return connection;
}

/// Finds the store and the other ranks.
void Group::Connection::meet() {
  const auto deadline = Clock::now() + options.timeout;
  store = hosts_store() ? Store::serve(launch) : Store::connect(launch, deadline);
  store->set_limit(options.peer_timeout);
  self = this_process(launch);
  try {
    attempt = find_attempt(*store, launch, pulse);
    store->enter(attempt);
    enrol(*store, launch, self, pulse);
    monitor = std::make_shared<Monitor>(another_connection(deadline), self, pulse);
    const std::vector<Member> members = gather_members(*store, launch, self, deadline);
    std::ranges::copy_if(members, std::back_inserter(others),
                         [this](const Member& member) { return member.rank != self.rank; });
    monitor->watch(members, launch.hosts_store);
    connect_peers(members);
  } catch (const StoreLost& lost) {
    throw Error(ExitCode::kUnavailable, lost.what(), kPeerHint);
  } catch (const Error& error) {
    if (monitor) announce(error.what());
    // Before the list of members is closed it is not known who still has to read it; those who wait ask twice a second.
    if (hosts_store() && others.empty()) std::this_thread::sleep_for(seconds(2));
    throw;
  }
}

void Group::Connection::connect_peers(const std::vector<Member>& members) {
  Worker worker;
  auto made = std::make_shared<std::shared_ptr<Gloo>>();
  const auto own = std::make_shared<std::unique_ptr<Store>>(another_connection(Clock::now() + options.timeout));
  const Gloo::Place place{self.rank, launch.world_size, reachable_address(self, members), options.timeout};
  const auto progress = worker.start([made, own, place] { *made = std::make_shared<Gloo>(**own, place); });
  await(*progress, *monitor, "the connection of the ranks with each other", options.timeout);
  gloo = std::move(*made);
}

void Group::Connection::announce(const std::string& cause) noexcept {
  try {
    constexpr size_t kLongest = 400;
    store->set_limit(seconds(3));
    const std::string first = store->exchange(kFailure, "", shorten(one_line(cause), kLongest));
    if (monitor) monitor->end(first);
    if (hosts_store() && !others.empty()) wait_for_others(*store, others, pulse, seconds(5));
  } catch (const std::exception&) {  // no store, nobody to tell
  }
}

Group::Group(std::unique_ptr<Connection> connection) : connection_(std::move(connection)) {}

Group::~Group() {
  // NOLINTNEXTLINE(bugprone-unused-return-value): abandoned on purpose, see the header
  if (connection_ && !connection_->has_left) (void)connection_.release();
}

std::shared_ptr<Group> Group::alone() {
  return std::shared_ptr<Group>(new Group(nullptr));
}

std::shared_ptr<Group> Group::join(const Launch& launch, const GroupOptions& options) {
  if (launch.world_size == 1) return alone();
  std::signal(SIGPIPE, SIG_IGN);
  auto connection = std::make_unique<Connection>();
  connection->launch = launch;
  connection->options = options;
  connection->pulse = {options.beat, options.peer_timeout};
  std::shared_ptr<Group> group(new Group(std::move(connection)));
  group->connection_->meet();
  log::debug("{} has joined {} others", group->connection_->self.description(), group->connection_->others.size());
  return group;
}

int64_t Group::rank() const {
  return connection_ ? connection_->launch.rank : 0;
}

int64_t Group::size() const {
  return connection_ ? connection_->launch.world_size : 1;
}

Pending Group::start(std::shared_ptr<Progress> progress, const char* name, const at::Tensor& result,
                     const at::Tensor& host) {
  return Pending(std::make_shared<Pending::Operation>(
      Pending::Operation{std::move(progress), connection_->monitor, name, connection_->options.timeout, result, host}));
}

Pending Group::all_reduce(const at::Tensor& tensor) {
  if (!connection_) return {};
  const at::Tensor host = on_host(tensor);
  return start(connection_->gloo->all_reduce(host), "a sum over the ranks", tensor, host);
}

Pending Group::reduce(const at::Tensor& tensor, int64_t root) {
  if (!connection_) return {};
  const at::Tensor host = on_host(tensor);
  return start(connection_->gloo->reduce(host, root), "a sum over the ranks", rank() == root ? tensor : at::Tensor(),
               host);
}

Pending Group::broadcast(const at::Tensor& tensor, int64_t root) {
  if (!connection_) return {};
  const at::Tensor host = rank() == root ? on_host(tensor) : place_on_host(tensor);
  return start(connection_->gloo->broadcast(host, root), "a broadcast", rank() == root ? at::Tensor() : tensor, host);
}

void Group::broadcast_all(const std::vector<Broadcast>& broadcasts) {
  constexpr size_t kMostInFlight = 8;
  std::deque<Pending> pending;
  for (const auto& [tensor, root] : broadcasts) {
    if (pending.size() == kMostInFlight) {
      pending.front().wait();
      pending.pop_front();
    }
    pending.push_back(broadcast(tensor, root));
  }
  for (Pending& each : pending) each.wait();
}

void Group::send(const at::Tensor& tensor, int64_t to) {
  TORCH_CHECK(connection_ && to != rank(), "send: to another rank only");
  start(connection_->gloo->send(on_host(tensor), to), "a message").wait();
}

void Group::receive(const at::Tensor& tensor, int64_t from) {
  TORCH_CHECK(connection_ && from != rank(), "receive: from another rank only");
  const at::Tensor host = place_on_host(tensor);
  start(connection_->gloo->receive(host, from), "a message", tensor, host).wait();
}

void Group::barrier() {
  if (connection_) start(connection_->gloo->barrier(), "a barrier").wait();
}

void Group::require_same(const std::string& what, const std::string& value) {
  if (!connection_) return;
  const at::Tensor lengths = at::zeros({size()}, at::kLong);
  lengths.mutable_data_ptr<int64_t>()[rank()] = static_cast<int64_t>(value.size());
  all_reduce(lengths).wait();
  const auto longest = *std::max_element(lengths.const_data_ptr<int64_t>(), lengths.const_data_ptr<int64_t>() + size());
  if (longest == 0) return;
  const at::Tensor rows = at::zeros({size(), longest}, at::kByte);  // every rank fills its own row: the sum is all rows
  const auto row = [&](int64_t of) { return reinterpret_cast<char*>(rows.mutable_data_ptr<uint8_t>()) + of * longest; };
  std::memcpy(row(rank()), value.data(), value.size());
  all_reduce(rows).wait();
  const auto value_of = [&](int64_t of) {
    return std::string(row(of), static_cast<size_t>(lengths.const_data_ptr<int64_t>()[of]));
  };
  const std::string first = value_of(0);
  for (int64_t other = 1; other < size(); ++other) {
    const std::string theirs = value_of(other);
    if (theirs == first) continue;
    throw Error(ExitCode::kConfig,
                fmt::format("{} of rank {} differs from rank 0's: {} against {}", what, other, excerpt(theirs, first),
                            excerpt(first, theirs)),
                "start all ranks with the same options, files and version");
  }
}

void Group::announce_failure(const Error& error) noexcept {
  if (!connection_ || connection_->has_left) return;
  try {
    connection_->announce(fmt::format("{} stopped: {}", connection_->self.description(), error.what()));
  } catch (const std::exception&) {  // out of memory
  }
}

void Group::leave() {
  if (!connection_ || connection_->has_left) return;
  connection_->has_left = true;
  connection_->monitor->end("");
  if (connection_->hosts_store())
    wait_for_others(*connection_->store, connection_->others, connection_->pulse, seconds(30));
  // On a thread that can be abandoned: Gloo's destructor waits for collectives that nobody may have waited for.
  Worker worker;
  const auto progress = worker.start([gloo = std::exchange(connection_->gloo, nullptr)]() mutable { gloo.reset(); });
  if (!progress->wait_for(seconds(5))) log::debug("rank {}: a collective never ended", rank());
}

}  // namespace fettle::dist
