// SPDX-License-Identifier: Apache-2.0
#include "train/saver.h"

#include <ATen/Tensor.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <exception>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "base/watchdog.h"
#include "device/device.h"
#include "train/loop.h"
#include "train/metrics_server.h"
#include "train/report.h"

namespace fettle::train {
namespace {

/// Before a save has been timed: what a slow network volume takes.
constexpr double kSlowBytesPerSecond = 20e6;
constexpr double kSlowSeconds = 2;

/// Copies `live`, wherever it is, into `copies` in the machine's memory, which are made at the first call.
void copy_tensors(const std::vector<model::NamedTensor>& live, std::vector<model::NamedTensor>& copies) {
  const c10::NoGradGuard no_gradients;
  copies.resize(live.size());
  for (size_t i = 0; i < live.size(); ++i) {
    copies[i].name = live[i].name;
    if (copies[i].tensor.defined()) {
      copies[i].tensor.copy_(live[i].tensor);
    } else {
      copies[i].tensor = live[i].tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
    }
  }
}

/// The processor's time of this thread.
double thread_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

CheckpointWriter::CheckpointWriter(Options options, AddFiles add_files)
    : options_(std::move(options)), add_files_(std::move(add_files)) {}

void CheckpointWriter::write(int64_t step, const nlohmann::json& state, const WriteTensors& write_tensors) {
  timed(step, [&] { return write_checkpoint(options_.output_dir, step, state, write_tensors, add_files_); });
}

void CheckpointWriter::write(int64_t step, const Snapshot& snapshot) {
  timed(step, [&] { return write_checkpoint(options_.output_dir, step, snapshot, add_files_); });
}

void CheckpointWriter::timed(int64_t step, const std::function<std::filesystem::path()>& action) {
  const SectionMark mark(Section::kSave, fmt::format("checkpoint-{}", step));
  const Stopwatch watch;
  const double processor_before = thread_seconds();
  if (options_.check) options_.check();
  sync_file(options_.output_dir / "metrics.jsonl");  // a checkpoint without the lines before it would leave a gap
  const std::filesystem::path folder = action();
  if (options_.check) options_.check();
  prune_checkpoints(options_.output_dir, options_.keep);
  longest_ = std::max(longest_.load(), watch.seconds());
  if (options_.server != nullptr) options_.server->saved(step);
  log::debug("wrote {} in {:.1f} s, {:.1f} s of them of the processor", folder.string(), watch.seconds(),
             thread_seconds() - processor_before);
}

double CheckpointWriter::expected_seconds() const {
  const double longest = longest_;
  return longest > 0 ? 2 * longest + 1 : kSlowSeconds + options_.bytes / kSlowBytesPerSecond;
}

CheckpointSaver::CheckpointSaver(CheckpointWriter::Options options, bool is_asynchronous,
                                 std::function<Snapshot(const Run&)> snapshot, AddFiles add_files)
    : writer_(std::move(options), std::move(add_files)),
      is_asynchronous_(is_asynchronous),
      snapshot_(std::move(snapshot)) {}

CheckpointSaver::~CheckpointSaver() {
  if (writing_.valid()) writing_.wait();
}

Snapshot CheckpointSaver::copy(const Snapshot& live) {
  const Stopwatch watch;
  copy_tensors(live.weights, weights_);
  copy_tensors(live.optimizer, optimizer_);
  log::debug("copied the state in {:.2f} s", watch.seconds());
  return {live.weights_file, weights_, optimizer_, live.state};
}

void CheckpointSaver::save(const Run& run) {
  finish();
  const Snapshot live = snapshot_(run);
  if (live.state == saved_) return;
  if (is_asynchronous_) {
    writing_ = std::async(std::launch::async, [this, step = run.state.step, snapshot = copy(live)] {
      device::work_in_background();
      writer_.write(step, snapshot);
    });
  } else {
    writer_.write(run.state.step, live);
  }
  saved_ = live.state;
}

void CheckpointSaver::finish() {
  if (!writing_.valid()) return;
  try {
    writing_.get();
  } catch (...) {
    saved_ = nullptr;
    throw;
  }
}

double CheckpointSaver::expected_seconds() const {
  const double one = writer_.expected_seconds();
  const bool is_writing = writing_.valid() && writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  return is_writing ? 2 * one : one;
}

}  // namespace fettle::train
