// SPDX-License-Identifier: Apache-2.0
/// The graph that a lazy device has put off: what would run at the next mark, and whether it would be compiled first.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace fettle::gaudi_stand_in {

/// Everything has been computed already when it is added here: what is modelled is when a card would compute it, and
/// which graphs it would see as the same. Two are the same if they have the same operators in the same order, on
/// tensors of the same shapes and types, with the same other arguments, except random seeds.
class Graph {
 public:
  static Graph& instance();

  /// A graph of nothing but views is not executed.
  enum class Kind { kComputes, kViews };
  void add(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, Kind kind);
  /// The same for what is no call of an operator.
  void add(const std::string& entry);

  /// The pending graph has a result in this tensor's memory.
  void wrote(const at::Tensor& tensor);
  [[nodiscard]] bool has_written(const at::Tensor& tensor);
  /// The memory is nobody's any more.
  void forget(const void* memory);

  enum class End { kMark, kForced };
  /// Executes what is pending. Throws, from the graph of the switch fail_at_graph on, what a lost card throws.
  void execute(End end);

  [[nodiscard]] std::string difference();

 private:
  void remember(std::vector<std::string> signature);

  std::mutex mutex_;
  std::vector<std::string> pending_;
  bool computes_ = false;
  std::set<const void*> written_;
  std::set<std::string> compiled_;  // hashes
  std::vector<std::string> latest_;
  std::vector<std::string> earlier_;
  int64_t executed_ = 0;
};

}  // namespace fettle::gaudi_stand_in
