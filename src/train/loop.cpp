// SPDX-License-Identifier: Apache-2.0
#include "train/loop.h"

#include <ATen/ops/tensor.h>
#include <ATen/record_function.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>

#include "base/error.h"
#include "base/log.h"
#include "base/stop_signal.h"
#include "base/watchdog.h"
#include "device/device.h"
#include "train/report.h"

namespace fettle::train {
namespace {

/// Saves what the last completed step left, unless that is done, and waits until it is on the disk.
void save_now(Run& run) {
  if (run.saver == nullptr || run.state.step == 0 || !run.is_whole) return;
  run.optimizer.clear_gradients();
  run.saver->save(run);
  run.saver->finish();
}

/// The same when training ends by an error, which is more important than one of saving.
void save_after_error(Run& run) {
  try {
    save_now(run);
  } catch (const std::exception& error) {
    log::warning("the state after step {} could not be saved: {}", run.state.step, error.what());
  }
}

/// Ends a run by an error that all ranks throw at the same step: where saving takes all of them, this is the place.
[[noreturn]] void fail_together(Run& run, const Error& error) {
  if (run.saver != nullptr && run.saver->takes_all_ranks()) save_after_error(run);
  throw error;
}

/// Refuses a step that would spoil the weights; nothing of it has been applied yet.
void require_finite(Run& run, double loss, double norm, double learning_rate) {
  if (std::isfinite(loss) && std::isfinite(norm)) return;
  fail_together(run, Error(ExitCode::kDiverged,
                           fmt::format("training diverged at step {} (learning rate {:.3g}): loss {}, gradient norm {}",
                                       run.state.step + 1, learning_rate, loss, norm),
                           fmt::format("lower learning_rate or lengthen the warm-up{}",
                                       run.state.step > 0 ? "; the state before this step is saved" : "")));
}

/// Stops at a gradient norm far above those before it: the step would spoil weights that are still good.
void require_no_spike(Run& run, double norm, double learning_rate) {
  constexpr size_t kWindow = 50;
  constexpr size_t kLeast = 10;  // fewer steps have no typical norm
  const double limit = run.options.grad_spike_limit;
  if (limit <= 0) return;
  std::vector<double>& norms = run.state.gradient_norms;
  if (norms.size() >= kLeast) {
    std::vector<double> sorted = norms;
    std::ranges::nth_element(sorted, sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2));
    const double median = sorted[sorted.size() / 2];
    if (norm > limit * median) {
      const std::string what = fmt::format(
          "the gradient norm {:.4g} of step {} (learning rate {:.3g}) is {:.1f} times the median of the {} steps "
          "before it; grad_spike_limit is {}",
          norm, run.state.step + 1, learning_rate, norm / median, norms.size(), limit);
      fail_together(run, Error(ExitCode::kDiverged, what,
                               "look at that step's records, lower learning_rate, or raise grad_spike_limit; the state "
                               "before this step is saved"));
    }
  }
  norms.push_back(norm);
  if (norms.size() > kWindow) norms.erase(norms.begin());
}

[[noreturn]] void stop(Run& run) {
  save_now(run);
  run.group->barrier();  // a launcher ends the others when one has ended: not before rank 0 has saved
  const bool has_state = run.state.step > 0;
  const std::string cause = stop_signal() == 0 ? "a signal to another rank" : signal_name(stop_signal());
  throw Error(ExitCode::kPreempted,
              fmt::format("stopped by {} at step {} of {}", cause, run.state.step, run.total_steps),
              has_state ? "the state is saved: run the same command again to continue"
                        : "no step is done, so there is nothing to save: run the same command again");
}

/// Dropout is on while this lives.
class TrainingMode {
 public:
  explicit TrainingMode(model::Decoder& model) : model_(model) { model_.set_training(true); }
  ~TrainingMode() { model_.set_training(false); }
  TrainingMode(const TrainingMode&) = delete;
  TrainingMode& operator=(const TrainingMode&) = delete;

 private:
  model::Decoder& model_;
};

void update(Run& run, double learning_rate) {
  RECORD_FUNCTION("fettle::optimizer", c10::ArrayRef<const c10::IValue>());
  run.is_whole = false;  // until the step is counted
  run.optimizer.step(learning_rate);
  run.optimizer.clear_gradients();
  run.shards.share_updated();
  run.model.refresh_compute_weights();
}

/// Whether something that happens "no", every so many "steps", or at the end of each "epoch" is due. What goes by steps
/// also happens after the last one.
bool is_due(const std::string& strategy, int64_t interval, const Run& run, bool epoch_ended) {
  if (strategy == "epoch") return epoch_ended;
  return strategy == "steps" && (run.state.step % interval == 0 || run.state.step == run.total_steps);
}

bool is_evaluation_due(const Run& run, bool epoch_ended) {
  const double steps = run.options.eval_steps > 0 ? run.options.eval_steps : run.options.logging_steps;
  return run.evaluate && is_due(run.options.eval_strategy, interval_steps(steps, run.total_steps), run, epoch_ended);
}

/// The evaluation is owed from before it begins until it is done: a checkpoint that a signal causes says so.
void evaluate_if_owed(Run& run, Report& report) {
  if (!run.evaluate) run.state.owes_evaluation = false;  // a run may go on without validation records
  if (!run.state.owes_evaluation) return;
  try {
    run.last_evaluation = run.evaluate();
  } catch (const Error& error) {
    if (error.code() == ExitCode::kPreempted) stop(run);
    throw;
  }
  run.state.owes_evaluation = false;
  run.schedule.observe(run.last_evaluation->loss);
  report.evaluated(*run.last_evaluation);
}

/// When to save: every so many steps or at an epoch's end, after save_minutes without, and after the last step.
class SavePlan {
 public:
  /// By this rank's clock.
  [[nodiscard]] bool is_long_ago(const Run& run) const {
    return run.options.save_minutes > 0 && since_.seconds() >= 60 * run.options.save_minutes;
  }
  /// `long_ago`: by rank 0's.
  void save_if_due(const Run& run, bool epoch_ended, bool long_ago) {
    const int64_t interval = interval_steps(run.options.save_steps, run.total_steps);
    const bool last = run.state.step == run.total_steps;
    if (last || long_ago || is_due(run.options.save_strategy, interval, run, epoch_ended)) save(run);
  }
  /// Now, unless nothing is to be saved at all.
  void save(const Run& run) {
    if (run.saver == nullptr || run.options.save_strategy == "no") return;
    run.saver->save(run);
    since_ = {};
  }

 private:
  Stopwatch since_;  // the last save, or the start of this process
};

/// The seconds from a stop signal until the state is saved: twice the slowest micro-batch so far and the save.
class StopBound {
 public:
  void step_done(const Step& step, double seconds) {
    const double batches = std::max(1.0, static_cast<double>(step.batches.size()));
    slowest_ = std::max(slowest_, seconds / batches);
  }
  [[nodiscard]] double seconds(const Run& run) const {
    const double batch = static_cast<double>(run.options.per_device_train_batch_size);
    const double larger = std::max(1.0, static_cast<double>(run.options.per_device_eval_batch_size) / batch);
    return 1 + 2 * slowest_ * larger + (run.saver != nullptr ? run.saver->expected_seconds() : 0);
  }

 private:
  double slowest_ = 0;
};

/// What the ranks agree on in a step.
struct Agreement {
  double loss = 0;  ///< of all
  bool saves = false;
  at::Tensor own_norm;  ///< gradient_norm of this rank's
};

/// The rank's share of a step, and then the sum over all: the gradients, the loss, whether rank 0's clock says to save,
/// and whether any was told to stop; then all drop the step.
Agreement step_gradient(Run& run, const Step& step, const SavePlan& plan) {
  if (run.gradients) run.gradients->begin();
  const std::vector<at::Tensor> shares = forward_backward(run.model, step, run.gradients.get());
  if (run.gradients) run.gradients->finish();
  const at::Tensor norm = gradient_norm(run.parameters);  // before anything is read: a device has all it needs then
  const bool saves = run.group->is_main() && plan.is_long_ago(run);
  const at::Tensor sums = at::tensor({sum(shares), saves ? 1.0 : 0.0, stop_signal() == 0 ? 0.0 : 1.0}, at::kDouble);
  run.group->all_reduce(sums).wait();
  if (sums[2].item<double>() > 0) stop(run);
  return {sums[0].item<double>(), sums[1].item<double>() > 0, norm};
}

void run_steps(Run& run, StopDeferral& deferral) {
  Report report(run);
  SavePlan saves;
  StopBound bound;
  if (run.profiler) run.profiler->expect(run.total_steps - run.state.step);
  if (run.state.owes_evaluation) {
    evaluate_if_owed(run, report);
    saves.save(run);  // in place of the checkpoint that says it is owed
  }
  while (run.state.step < run.total_steps) {
    if (run.profiler) run.profiler->step_begins();
    const Stopwatch watch;
    const double learning_rate = run.schedule.learning_rate(run.state.step);
    Cursor next = run.state.cursor;
    const Step step = run.loader.next(next);
    const auto [loss, saves_by_clock, own_norm] = step_gradient(run, step, saves);
    const double norm = clip_gradients(run.parameters, own_norm, run.options.max_grad_norm, run.shards.norm_group());
    require_finite(run, loss, norm, learning_rate);
    require_no_spike(run, norm, learning_rate);
    update(run, learning_rate);
    const double seconds = watch.seconds();
    bound.step_done(step, seconds);
    deferral.set_bound(bound.seconds(run));
    report.count(step, next, {loss, norm, learning_rate, seconds});
    if (run.profiler) run.profiler->step_ended(step.tokens);
    report.show();
    run.state.owes_evaluation = is_evaluation_due(run, step.ends_epoch);
    evaluate_if_owed(run, report);
    saves.save_if_due(run, step.ends_epoch, saves_by_clock);
    deferral.set_bound(bound.seconds(run));
  }
}

}  // namespace

void train(Run& run) {
  StopDeferral deferral;
  // One rank's error alone ends the run without a save where that takes all ranks: the others are somewhere else.
  const bool saves_alone = run.saver == nullptr || !run.saver->takes_all_ranks();
  try {
    run_steps(run, deferral);
    if (run.saver != nullptr) run.saver->finish();
  } catch (const Error& error) {
    const bool is_saved_or_cannot = error.code() == ExitCode::kPreempted || error.code() == ExitCode::kIo;
    if (!is_saved_or_cannot && saves_alone) save_after_error(run);
    throw;
  } catch (...) {
    if (saves_alone) save_after_error(run);
    throw;
  }
}

namespace {

/// The gradient of micro-batch `i`; returns its share of the step's loss, a scalar on the model's device.
at::Tensor forward_backward(model::Decoder& model, const Step& step, size_t i) {
  const SectionMark mark(Section::kStep, fmt::format("micro-batch {} of {}", i + 1, step.batches.size()));
  device::seed(step.seeds[i]);
  const at::Tensor share = model.loss_sum(to_tensors(step.batches[i])).div(static_cast<double>(step.target_tokens));
  share.backward();
  return share.detach();
}

}  // namespace

std::vector<at::Tensor> forward_backward(model::Decoder& model, const Step& step, dist::GradientBuckets* gradients) {
  const TrainingMode mode(model);
  std::vector<at::Tensor> shares;
  for (size_t i = 0; i < static_cast<size_t>(step.rounds); ++i) {
    const bool has_batch = i < step.batches.size() && stop_signal() == 0;
    if (gradients != nullptr) gradients->begin_batch(/*is_last=*/i + 1 == step.batches.size());
    if (has_batch && step.batches[i].target_tokens > 0) {
      shares.push_back(forward_backward(model, step, i));
    } else {
      model.take_part();
    }
    if (gradients != nullptr) gradients->end_batch();
  }
  return shares;
}

double sum(const std::vector<at::Tensor>& scalars) {
  double sum = 0;
  for (const at::Tensor& scalar : scalars) sum += scalar.item<double>();
  return sum;
}

model::Batch to_tensors(const data::Batch& batch) {
  return {at::tensor(batch.tokens, at::kLong), at::tensor(batch.labels, at::kLong),
          at::tensor(batch.positions, at::kLong), batch.cu_seqlens};
}

}  // namespace fettle::train
