// SPDX-License-Identifier: Apache-2.0
/// The keys and values through which the ranks find each other: c10d's TCPStore, except that every call returns in
/// time. TCPStore's own limits cover the wait for a key, but not a server that is stopped: its client then blocks in a
/// read.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "dist/launch.h"

namespace c10d {
class Store;
}

namespace fettle::dist {

/// The store does not answer within the limit of a call, or its connection is closed.
class StoreLost : public Error {
 public:
  StoreLost(bool is_silent, const std::string& what) : Error(ExitCode::kUnavailable, what), is_silent_(is_silent) {}
  [[nodiscard]] bool is_silent() const { return is_silent_; }

 private:
  bool is_silent_;
};

/// One connection to the store. All calls may throw StoreLost, and nothing else of the store's.
class Store {
 public:
  /// Rank 0 of a run whose launcher has no store: serves at the launch's port, to every address.
  /// Throws Error{kUnavailable} if another process has the port.
  static std::unique_ptr<Store> serve(const Launch& launch);
  /// Connects to the store of the launch. Tries once a second until `deadline`, and logs every ten seconds why it still
  /// waits: the name of rank 0 may not resolve yet, its process not listen yet.
  /// Throws Error{kUnavailable} with the last cause.
  static std::unique_ptr<Store> connect(const Launch& launch, std::chrono::steady_clock::time_point deadline);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  /// From now on all keys lie below `folder`.
  void enter(const std::string& folder);
  /// How long a call may take: 20 s if not set.
  void set_limit(std::chrono::milliseconds limit);

  void set(const std::string& key, const std::string& value);
  /// Sets the key if it has the value `expected` (empty: if there is no such key); returns its value now.
  std::string exchange(const std::string& key, const std::string& expected, const std::string& value);
  /// Whether all of the keys are there.
  bool has(const std::vector<std::string>& keys);
  /// The values of keys that are there.
  std::vector<std::string> get(const std::vector<std::string>& keys);

  /// For c10d itself, which waits as long as it likes.
  [[nodiscard]] const c10::intrusive_ptr<c10d::Store>& handle() const;

 private:
  struct Connection;
  explicit Store(std::unique_ptr<Connection> connection);
  std::unique_ptr<Connection> connection_;
};

/// How messages name the place: "rank 0 at host:port", or "the launcher's store at host:port".
std::string store_place(const Launch& launch);

}  // namespace fettle::dist
