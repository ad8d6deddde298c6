// SPDX-License-Identifier: Apache-2.0
#include "train/shared_checkpoint.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/watchdog.h"
#include "hub/safetensors.h"
#include "train/loop.h"
#include "train/ranks.h"
#include "train/tensor_file.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

/// By name: the order in which hub::write_safetensors asks for tensors of one type.
void sort_by_name(std::vector<SharedTensor>& tensors) {
  std::ranges::sort(tensors, {}, &SharedTensor::name);
}

bool is_held(const dist::Group& group, const SharedTensor& tensor) {
  return tensor.holder == SharedTensor::kAllRanks || tensor.holder == group.rank();
}

/// The tensor on rank 0: its own, or memory for what another holds.
at::Tensor on_main(const SharedTensor& tensor) {
  return tensor.tensor.defined() ? tensor.tensor.detach() : at::empty(tensor.shape, at::kFloat);
}

void send_to_main(dist::Group& group, const std::vector<SharedTensor>& tensors) {
  for (const SharedTensor& tensor : tensors) {
    if (tensor.holder == group.rank()) group.send(tensor.tensor.detach(), 0);
  }
}

}  // namespace

std::vector<SharedTensor> shared_weights(const std::vector<model::NamedTensor>& parameters, const Shards& shards,
                                         int64_t rank) {
  std::vector<SharedTensor> weights;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor& tensor = parameters[i].tensor;
    const int64_t holder = shards.is_held_by_all(i) ? SharedTensor::kAllRanks : shards.owners()[i];
    const bool is_here = holder == SharedTensor::kAllRanks || holder == rank;
    weights.push_back({parameters[i].name, tensor.sizes().vec(), holder, is_here ? tensor : at::Tensor()});
  }
  return weights;
}

std::vector<SharedTensor> shared_optimizer_state(const std::vector<model::NamedTensor>& parameters,
                                                 const Shards& shards, const std::vector<model::NamedTensor>& own) {
  std::map<std::string, at::Tensor> held;
  for (const model::NamedTensor& tensor : own) held[tensor.name] = tensor.tensor;
  std::vector<SharedTensor> state;
  for (size_t i = 0; i < parameters.size(); ++i) {
    for (const auto& [suffix, shape] : AdamW::state_of(parameters[i].tensor)) {
      SharedTensor each{parameters[i].name + suffix, shape, shards.owners()[i], {}};
      if (const auto found = held.find(each.name); found != held.end()) each.tensor = found->second;
      state.push_back(std::move(each));
    }
  }
  return state;
}

std::string write_shared(dist::Group& group, const fs::path& file, std::vector<SharedTensor> tensors,
                         const std::map<std::string, std::string>& metadata) {
  const c10::NoGradGuard no_gradients;
  sort_by_name(tensors);
  if (!group.is_main()) {
    send_to_main(group, tensors);
    return {};
  }
  std::vector<hub::TensorView> views;
  views.reserve(tensors.size());
  for (const SharedTensor& tensor : tensors) views.push_back({tensor.name, hub::DType::kF32, tensor.shape, {}});
  auto next = tensors.begin();
  at::Tensor values;
  return hub::write_safetensors(file, views, metadata, [&](const hub::TensorView& view) {
    const SharedTensor& tensor = *next++;
    assert(tensor.name == view.name);
    values = on_main(tensor).cpu();
    if (!is_held(group, tensor)) group.receive(values, tensor.holder);
    require_finite({{view.name, values}});
    return bytes_of(values);
  });
}

void restore_shared(dist::Group& group, const fs::path& file, const std::vector<SharedTensor>& tensors) {
  const c10::NoGradGuard no_gradients;
  std::optional<TensorReader> reader;
  if (group.is_main()) reader.emplace(file);
  for (const SharedTensor& tensor : tensors) {
    if (reader) {
      const at::Tensor values = on_main(tensor);
      reader->read({tensor.name, values});
      if (tensor.holder == SharedTensor::kAllRanks) {
        group.broadcast(values, 0).wait();
      } else if (!is_held(group, tensor)) {
        group.send(values, tensor.holder);
      }
    } else if (tensor.holder == SharedTensor::kAllRanks) {
      group.broadcast(tensor.tensor.detach(), 0).wait();
    } else if (is_held(group, tensor)) {
      group.receive(tensor.tensor.detach(), 0);
    }
  }
  if (reader) reader->finish();
}

void restore_shared_checkpoint(dist::Group& group, const fs::path& folder, const SharedSnapshot& snapshot) {
  restore_shared(group, folder / snapshot.weights_file, snapshot.weights);
  restore_shared(group, folder / kOptimizerFile, snapshot.optimizer);
}

SharedSaver::SharedSaver(std::shared_ptr<dist::Group> group, CheckpointWriter::Options options,
                         std::function<SharedSnapshot(const Run&)> snapshot, AddFiles add_files)
    : group_(std::move(group)), writer_(std::move(options), std::move(add_files)), snapshot_(std::move(snapshot)) {}

void SharedSaver::save(const Run& run) {
  if (has_failed_) throw Error(ExitCode::kUnavailable, "the save before this one failed");
  has_failed_ = true;
  const SectionMark mark(Section::kSave, fmt::format("checkpoint-{}", run.state.step));
  const SharedSnapshot snapshot = snapshot_(run);
  // Rank 0 decides for all: only its state is the one on the disk.
  const bool is_new = share_text(*group_, snapshot.state == saved_ ? "same" : "new") == "new";
  if (is_new) write(run.state.step, snapshot);
  saved_ = snapshot.state;
  has_failed_ = false;
}

void SharedSaver::write(int64_t step, const SharedSnapshot& snapshot) {
  const auto write_tensors = [&](const fs::path& folder) {
    return std::map<std::string, std::string>{
        {snapshot.weights_file,
         write_shared(*group_, folder / snapshot.weights_file, snapshot.weights, {{"format", "pt"}})},
        {kOptimizerFile, write_shared(*group_, folder / kOptimizerFile, snapshot.optimizer, {})}};
  };
  if (group_->is_main()) {
    writer_.write(step, snapshot.state, write_tensors);
  } else {
    write_tensors({});
  }
  group_->barrier();  // a stop signal's bound counts on all ranks
}

}  // namespace fettle::train
