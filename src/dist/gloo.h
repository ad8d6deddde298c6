// SPDX-License-Identifier: Apache-2.0
/// c10d's process group over Gloo: the collectives themselves, on processors.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "dist/store.h"
#include "dist/worker.h"

namespace fettle::dist {

/// All operations return at once and work on their tensors, which must be contiguous and on the cpu, until their
/// progress has ended. Every rank starts the same collectives in the same order.
class Gloo {
 public:
  struct Place {
    int64_t rank;
    int64_t size;
    std::string address;  ///< numeric, of this machine; GLOO_SOCKET_IFNAME has precedence
    std::chrono::milliseconds timeout;
  };

  /// Connects every rank with every other: call on all of them. Throws what c10d throws, and may not return if another
  /// rank is stuck. Throws Error{kConfig} if GLOO_SOCKET_IFNAME names an interface that is not there.
  Gloo(const Store& store, const Place& place);
  /// Waits for what is under way.
  ~Gloo();
  Gloo(const Gloo&) = delete;
  Gloo& operator=(const Gloo&) = delete;

  std::shared_ptr<Progress> all_reduce(const at::Tensor& tensor);
  std::shared_ptr<Progress> reduce(const at::Tensor& tensor, int64_t root);
  std::shared_ptr<Progress> broadcast(const at::Tensor& tensor, int64_t root);
  std::shared_ptr<Progress> barrier();
  std::shared_ptr<Progress> send(const at::Tensor& tensor, int64_t to);
  std::shared_ptr<Progress> receive(const at::Tensor& tensor, int64_t from);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace fettle::dist
