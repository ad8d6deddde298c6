// SPDX-License-Identifier: Apache-2.0
#include "dist/store.h"

#include <c10/util/Logging.h>
#include <fmt/format.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <cstdlib>
#include <optional>
#include <utility>

#include "dist/network.h"
#include "dist/wait.h"
#include "dist/worker.h"

namespace fettle::dist {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Handle = c10::intrusive_ptr<c10d::Store>;

constexpr milliseconds kCallLimit = seconds(20);
constexpr milliseconds kProbeLimit = seconds(15);
constexpr milliseconds kGreetingLimit = seconds(10);

/// libtorch's own log lines ("[W… socket.cpp:…] The client socket has failed to connect…") stay off the user's screen,
/// unless TORCH_CPP_LOG_LEVEL asks for them.
void silence_c10d() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") != nullptr) {
    c10::initLogging();
  } else {
    FLAGS_caffe2_log_level = 3;  // fatal alone
  }
  ::setenv("GLOO_LOG_LEVEL", "ERROR", /*overwrite=*/0);
}

std::string prefix_of(const Launch& launch) {
  return launch.store_prefix.empty() ? "fettle" : launch.store_prefix + "/fettle";
}

/// Connects to a port that answers; `served` is the bound socket of the server to start, if this process serves.
Handle open_store(const std::string& host, uint16_t port, std::optional<int> served, milliseconds limit) {
  c10d::TCPStoreOptions options;
  options.port = port;
  options.isServer = served.has_value();
  options.waitWorkers = false;
  options.timeout = limit;
  options.masterListenFd = served;
  try {
    return c10::make_intrusive<c10d::TCPStore>(host, options);
  } catch (const c10::Error& error) {
    // A libtorch that was built without libuv says so before it does anything.
    if (std::string(error.what_without_backtrace()).find("libuv") == std::string::npos) throw;
  }
  options.useLibUV = false;
  return c10::make_intrusive<c10d::TCPStore>(host, options);
}

std::vector<uint8_t> bytes(const std::string& text) {
  return {text.begin(), text.end()};
}

std::string text(const std::vector<uint8_t>& bytes) {
  return {bytes.begin(), bytes.end()};
}

}  // namespace

std::string store_place(const Launch& launch) {
  return fmt::format("{} at {}:{}", launch.hosts_store ? "rank 0" : "the launcher's store", launch.master_address,
                     launch.master_port);
}

struct Store::Connection {
  Connection(Handle opened, const Launch& launch, std::string named)
      : store(c10::make_intrusive<c10d::PrefixStore>(prefix_of(launch), std::move(opened))), place(std::move(named)) {}

  Handle store;
  std::string place;
  milliseconds limit = kCallLimit;
  Worker worker;

  template <typename Question>
  auto ask(Question question) {
    using Answer = decltype(question(*store));
    auto answer = std::make_shared<std::optional<Answer>>();
    const auto progress = worker.start([store = store, answer, question] { *answer = question(*store); });
    if (!progress->wait_for(limit)) {
      throw StoreLost(true, fmt::format("{} has not answered for {} s", place, limit.count() / 1000));
    }
    if (progress->error()) throw StoreLost(false, fmt::format("{} is gone ({})", place, reason(progress->error())));
    return std::move(**answer);
  }
};

Store::Store(std::unique_ptr<Connection> connection) : connection_(std::move(connection)) {}
Store::~Store() = default;

std::unique_ptr<Store> Store::serve(const Launch& launch) {
  silence_c10d();
  const int socket = bind_port(launch.master_port);
  // By the loopback address: the name of rank 0 may not resolve yet, even for itself.
  Worker worker;
  auto opened = std::make_shared<Handle>();
  const auto progress = worker.start(
      [opened, socket, port = launch.master_port] { *opened = open_store("127.0.0.1", port, socket, kCallLimit); });
  if (!progress->wait_for(2 * kCallLimit) || progress->error()) {
    throw Error(ExitCode::kUnavailable,
                fmt::format("rank 0 cannot serve the other ranks at port {}: {}", launch.master_port,
                            progress->error() ? reason(progress->error()) : "its own connection does not open"),
                "choose another MASTER_PORT");
  }
  auto place = fmt::format("the store of rank 0 at its port {}", launch.master_port);
  return std::unique_ptr<Store>(new Store(std::make_unique<Connection>(*opened, launch, std::move(place))));
}

std::unique_ptr<Store> Store::connect(const Launch& launch, Clock::time_point deadline) {
  silence_c10d();
  constexpr int kMostSilences = 3;
  const auto began = Clock::now();
  const bool is_own = launch.hosts_store && launch.rank == 0;
  const std::string host = is_own ? "127.0.0.1" : launch.master_address;
  std::string cause;
  int silences = 0;
  Wait wait(deadline, seconds(1));
  do {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    cause = probe(host, launch.master_port, std::clamp(left, milliseconds(1000), kProbeLimit));
    if (!cause.empty()) continue;
    Worker worker;
    auto opened = std::make_shared<Handle>();
    const milliseconds limit = std::clamp(left, milliseconds(1000), kGreetingLimit);
    const auto progress = worker.start(
        [opened, host, port = launch.master_port, limit] { *opened = open_store(host, port, std::nullopt, limit); });
    if (!progress->wait_for(limit + seconds(1))) {
      cause = "what listens there does not answer as a store does";
      ++silences;
    } else if (progress->error()) {
      cause = fmt::format("what listens there is no store: {}", reason(progress->error()));
    } else {
      return std::unique_ptr<Store>(new Store(std::make_unique<Connection>(*opened, launch, store_place(launch))));
    }
  } while (silences < kMostSilences && wait.again([&] { return fmt::format("{}: {}", store_place(launch), cause); }));
  throw Error(ExitCode::kUnavailable,
              fmt::format("rank {} did not reach {} within {} s: {}", launch.rank, store_place(launch),
                          std::chrono::ceil<seconds>(std::min(deadline, Clock::now()) - began).count(), cause),
              "see that rank 0 runs, that MASTER_ADDR and MASTER_PORT name it, and that the port is open between the "
              "machines; ddp_timeout sets the limit");
}

void Store::enter(const std::string& folder) {
  connection_->store = c10::make_intrusive<c10d::PrefixStore>(folder, connection_->store);
}

void Store::set_limit(milliseconds limit) {
  connection_->limit = limit;
}

void Store::set(const std::string& key, const std::string& value) {
  connection_->ask([=](c10d::Store& store) {
    store.set(key, bytes(value));
    return true;
  });
}

std::string Store::exchange(const std::string& key, const std::string& expected, const std::string& value) {
  return connection_->ask(
      [=](c10d::Store& store) { return text(store.compareSet(key, bytes(expected), bytes(value))); });
}

bool Store::has(const std::vector<std::string>& keys) {
  return connection_->ask([=](c10d::Store& store) { return store.check(keys); });
}

std::vector<std::string> Store::get(const std::vector<std::string>& keys) {
  return connection_->ask([=](c10d::Store& store) {
    std::vector<std::string> values;
    for (const std::vector<uint8_t>& value : store.multiGet(keys)) values.push_back(text(value));
    return values;
  });
}

const c10::intrusive_ptr<c10d::Store>& Store::handle() const {
  return connection_->store;
}

}  // namespace fettle::dist
