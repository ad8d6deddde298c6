// SPDX-License-Identifier: Apache-2.0
#include "dist/gloo.h"

#include <fmt/format.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <cstdlib>
#include <sstream>
#include <utility>
#include <vector>

#include "base/error.h"

namespace fettle::dist {
namespace {

using Work = c10::intrusive_ptr<c10d::Work>;
using Options = c10d::ProcessGroupGloo::Options;

void add_devices(Options& options, const std::string& address) {
  const char* interfaces = std::getenv("GLOO_SOCKET_IFNAME");
  if (interfaces == nullptr || *interfaces == '\0') {
    options.devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    return;
  }
  std::istringstream names(interfaces);
  for (std::string name; std::getline(names, name, ',');) {
    try {
      options.devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
    } catch (const std::exception&) {
      throw Error(ExitCode::kConfig,
                  fmt::format("GLOO_SOCKET_IFNAME: this machine has no interface '{}' with an address", name),
                  "name one that `ip address` lists, or leave the variable out");
    }
  }
}

/// A collective's end reaches its progress by the callback of its future.
std::shared_ptr<Progress> follow(const Work& work) {
  auto progress = std::make_shared<Progress>();
  work->getFuture()->addCallback([progress](c10::ivalue::Future& future) {
    progress->finish(future.hasError() ? future.exception_ptr() : nullptr);
  });
  return progress;
}

int small(int64_t rank) {
  return static_cast<int>(rank);
}

}  // namespace

struct Gloo::Implementation {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group;
  Worker messages;  // a message has no future: someone has to wait for it

  std::shared_ptr<Progress> wait_aside(const Work& work) {
    return messages.start([work] { work->wait(); });
  }
};

Gloo::Gloo(const Store& store, const Place& place) : implementation_(std::make_unique<Implementation>()) {
  const auto options = Options::create(place.timeout);
  add_devices(*options, place.address);
  const c10::intrusive_ptr<c10d::Store> below = c10::make_intrusive<c10d::PrefixStore>("gloo", store.handle());
  implementation_->group =
      c10::make_intrusive<c10d::ProcessGroupGloo>(below, small(place.rank), small(place.size), options);
}

Gloo::~Gloo() = default;

std::shared_ptr<Progress> Gloo::all_reduce(const at::Tensor& tensor) {
  std::vector<at::Tensor> tensors{tensor};
  return follow(implementation_->group->allreduce(tensors));
}

std::shared_ptr<Progress> Gloo::reduce(const at::Tensor& tensor, int64_t root) {
  std::vector<at::Tensor> tensors{tensor};
  c10d::ReduceOptions options;
  options.rootRank = root;
  return follow(implementation_->group->reduce(tensors, options));
}

std::shared_ptr<Progress> Gloo::broadcast(const at::Tensor& tensor, int64_t root) {
  std::vector<at::Tensor> tensors{tensor};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  return follow(implementation_->group->broadcast(tensors, options));
}

std::shared_ptr<Progress> Gloo::barrier() {
  return follow(implementation_->group->barrier());
}

std::shared_ptr<Progress> Gloo::send(const at::Tensor& tensor, int64_t to) {
  constexpr int kTag = 0;
  std::vector<at::Tensor> tensors{tensor};
  return implementation_->wait_aside(implementation_->group->send(tensors, small(to), kTag));
}

std::shared_ptr<Progress> Gloo::receive(const at::Tensor& tensor, int64_t from) {
  constexpr int kTag = 0;
  std::vector<at::Tensor> tensors{tensor};
  return implementation_->wait_aside(implementation_->group->recv(tensors, small(from), kTag));
}

}  // namespace fettle::dist
