// SPDX-License-Identifier: Apache-2.0
/// What libtorch's ProcessGroupGloo.hpp names of Gloo. Gloo itself is inside libtorch_cpu, but the wheel carries none
/// of its headers; those of a distribution are of another version, and would compile where their layout differs. These
/// declarations hold no layout: c10d alone makes such objects, and has them through pointers.
/// cmake/gloo.cmake puts them where <gloo/…> is looked for.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace transport {
class Device;
class UnboundBuffer;
}  // namespace transport

namespace rendezvous {

/// A base of c10d's GlooStore, which only libtorch makes objects of.
class Store {
 public:
  virtual ~Store() = default;
  virtual void set(const std::string& key, const std::vector<char>& value) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};

}  // namespace rendezvous
}  // namespace gloo
