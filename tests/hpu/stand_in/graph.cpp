// SPDX-License-Identifier: Apache-2.0
#include "hpu/stand_in/graph.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <sstream>
#include <utility>

#include "hpu/stand_in/counters.h"
#include "hpu/stand_in/device.h"
#include "hpu/stand_in/switches.h"

namespace fettle::gaudi_stand_in {
namespace {

void describe(std::ostream& out, const at::Tensor& tensor) {
  if (!tensor.defined()) {
    out << "None";
  } else if (tensor.is_cpu() && tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
    out << c10::IValue(tensor.item());
  } else {
    out << (tensor.is_cpu() ? "host " : "") << tensor.scalar_type() << tensor.sizes();
  }
}

void describe(std::ostream& out, const c10::IValue& value) {
  if (value.isTensor()) {
    describe(out, value.toTensor());
  } else if (value.isList()) {
    out << '[';
    for (const c10::IValue& element : value.toListRef()) {
      describe(out, element);
      out << ' ';
    }
    out << ']';
  } else if (value.isGenerator()) {
    out << "Generator";
  } else if (value.isStorage()) {
    out << "Storage";
  } else {
    out << value;
  }
}

std::string hash_of(const std::vector<std::string>& signature) {
  // Two hashes: a collision would hide a compilation.
  size_t one = 0;
  std::string all;
  for (const std::string& entry : signature) {
    one = one * 1099511628211U + std::hash<std::string>()(entry);
    all += entry + '\n';
  }
  return std::to_string(one) + ' ' + std::to_string(std::hash<std::string>()(all));
}

const void* memory_of(const at::Tensor& tensor) {
  return tensor.has_storage() ? tensor.storage().data() : nullptr;
}

}  // namespace

Graph& Graph::instance() {
  static auto* graph = new Graph;  // never destroyed: tensors are freed until the process is gone
  return *graph;
}

void Graph::add(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, Kind kind) {
  std::ostringstream entry;
  entry << op.operator_name() << '(';
  const size_t count = op.schema().arguments().size();
  for (size_t i = 0; i < count; ++i) {
    describe(entry, arguments[arguments.size() - count + i]);
    entry << (i + 1 < count ? ", " : "");
  }
  entry << ')';
  const std::scoped_lock lock(mutex_);
  pending_.push_back(entry.str());
  computes_ = computes_ || kind == Kind::kComputes;
}

void Graph::add(const std::string& entry) {
  const std::scoped_lock lock(mutex_);
  pending_.push_back(entry);
  computes_ = true;
}

void Graph::wrote(const at::Tensor& tensor) {
  const std::scoped_lock lock(mutex_);
  if (const void* memory = memory_of(tensor); memory != nullptr) written_.insert(memory);
}

bool Graph::has_written(const at::Tensor& tensor) {
  const std::scoped_lock lock(mutex_);
  return written_.contains(memory_of(tensor));
}

void Graph::forget(const void* memory) {
  const std::scoped_lock lock(mutex_);
  written_.erase(memory);
}

void Graph::execute(End end) {
  const std::scoped_lock lock(mutex_);
  std::vector<std::string> signature = std::exchange(pending_, {});
  written_.clear();
  const bool computes = std::exchange(computes_, false);
  if (computes) ++executed_;
  const int64_t last = switches().fail_at_graph;
  TORCH_CHECK(last == 0 || executed_ < last, kLostCard);
  if (!computes) return;
  count("graphs");
  if (end == End::kForced) count("forced");
  if (compiled_.insert(hash_of(signature)).second) remember(std::move(signature));
}

void Graph::remember(std::vector<std::string> signature) {
  count("compilations");
  // As the bridge's cache on the disk: what is compiled is stored under its hash, unless it is there already.
  const std::string config = environment("PT_HPU_RECIPE_CACHE_CONFIG");
  const std::string folder = config.substr(0, config.find(','));
  if (!folder.empty()) {
    std::string hash = hash_of(signature);
    std::ranges::replace(hash, ' ', '_');
    for (const char* suffix : {".recipe", ".metadata"}) std::ofstream(folder + '/' + hash + suffix) << "stand-in\n";
  }
  earlier_ = std::exchange(latest_, std::move(signature));
}

std::string Graph::difference() {
  const std::scoped_lock lock(mutex_);
  const auto [before, after] = std::mismatch(earlier_.begin(), earlier_.end(), latest_.begin(), latest_.end());
  std::ostringstream text;
  text << "the earlier graph has " << earlier_.size() << " operators, the latest " << latest_.size()
       << "; they differ first at " << before - earlier_.begin() << '\n'
       << "earlier: " << (before == earlier_.end() ? "(its end)" : *before) << '\n'
       << "latest:  " << (after == latest_.end() ? "(its end)" : *after) << '\n';
  return text.str();
}

}  // namespace fettle::gaudi_stand_in
