// SPDX-License-Identifier: Apache-2.0
/// The processes of a run as one group: they find each other within a time limit, exchange tensors, and when one of
/// them fails, every other says which and why within seconds instead of hanging.
///
/// What a caller does when any of this throws: `announce_failure`, print the error, and end the process by std::_Exit.
/// Threads may still be inside a call of the network that does not return, and libtorch's destructors would wait for
/// them. The destructor of a Group that has not left abandons them on purpose.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/error.h"
#include "dist/launch.h"

namespace fettle::dist {

class Progress;

struct GroupOptions {
  std::chrono::seconds timeout{1800};     ///< ddp_timeout: of the rendezvous, and of one collective
  std::chrono::seconds peer_timeout{20};  ///< a rank that shows no sign of life for so long is given up
  std::chrono::milliseconds beat{1000};   ///< how often it shows one
};

/// A collective under way. Its tensor may not be touched before wait() has returned.
class Pending {
 public:
  Pending() = default;  ///< one that is done
  /// Returns when the collective is done on this rank. Throws Error{kUnavailable} that names the rank that is gone or
  /// does not answer, repeats the failure that a rank has announced, or says that the time limit has passed.
  void wait();
  /// Whether wait() would return, or throw, at once.
  [[nodiscard]] bool has_ended() const;

 private:
  friend class Group;
  struct Operation;
  explicit Pending(std::shared_ptr<Operation> operation) : operation_(std::move(operation)) {}
  std::shared_ptr<Operation> operation_;
};

/// One thread at a time calls the operations, and all ranks call them in the same order.
/// Tensors are contiguous. One that is not on the CPU goes through the host's memory: of a LoRA run the gradients are
/// 17 to 160 MB a step at 7B, which no network between machines carries faster than that.
class Group {
 public:
  /// A group of this process alone: every operation does nothing.
  static std::shared_ptr<Group> alone();
  /// Meets the other ranks. Throws Error{kUnavailable} if rank 0 cannot be reached, a rank does not come until
  /// `options.timeout` or fails meanwhile; Error{kConfig} if two processes have one rank or their world sizes differ.
  /// From then on SIGPIPE is ignored in this process: a write to a rank that is gone must not end it.
  static std::shared_ptr<Group> join(const Launch& launch, const GroupOptions& options);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  [[nodiscard]] int64_t rank() const;
  [[nodiscard]] int64_t size() const;
  [[nodiscard]] bool is_main() const { return rank() == 0; }

  /// The sum over the ranks, in place; the same bits on all of them.
  [[nodiscard]] Pending all_reduce(const at::Tensor& tensor);
  /// The sum over the ranks arrives at `root`; elsewhere the tensor's values are undefined afterwards.
  [[nodiscard]] Pending reduce(const at::Tensor& tensor, int64_t root);
  [[nodiscard]] Pending broadcast(const at::Tensor& tensor, int64_t root);
  struct Broadcast {
    at::Tensor tensor;
    int64_t root;
  };
  /// All of them, a few on their way at once: each tensor of a GPU has a copy in the host's memory meanwhile.
  void broadcast_all(const std::vector<Broadcast>& broadcasts);
  /// Return when the tensor may be changed again, or has arrived. Type and shape are the same on both sides.
  void send(const at::Tensor& tensor, int64_t to);
  void receive(const at::Tensor& tensor, int64_t from);
  void barrier();

  /// Compares `value` of all ranks. Throws Error{kConfig} on every rank if one differs from rank 0's: names the first
  /// such rank, and shows both values where they part. `what`: what it is, e.g. "configuration".
  void require_same(const std::string& what, const std::string& value);

  /// Tells the other ranks why this one stops, so that they say it too. At most a few seconds: rank 0, with which the
  /// store ends, stays until the others have read it.
  void announce_failure(const Error& error) noexcept;
  /// The normal end of the run. Rank 0, with which the store ends, stays until the others have left, at most 30 s.
  void leave();

 private:
  struct Connection;
  explicit Group(std::unique_ptr<Connection> connection);
  Pending start(std::shared_ptr<Progress> progress, const char* name, const at::Tensor& result = {},
                const at::Tensor& host = {});

  std::unique_ptr<Connection> connection_;  ///< empty: alone
};

}  // namespace fettle::dist
