// SPDX-License-Identifier: Apache-2.0
#include "train/loop.h"

#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <ATen/record_function.h>
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/stop_signal.h"
#include "base/watchdog.h"
#include "device/device.h"
#include "ops/to_device.h"
#include "train/outcome.h"
#include "train/report.h"

namespace fettle::train {
namespace {

[[noreturn]] void stop(Run& run) {
  read_outcomes(run);
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
  clear_gradients(run.parameters);
  run.shards.share_updated();
  run.model.refresh_compute_weights();
  device::mark_step(run.model.device());
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
  [[nodiscard]] static bool is_save_due(const Run& run, bool epoch_ended, bool long_ago) {
    const int64_t interval = interval_steps(run.options.save_steps, run.total_steps);
    const bool last = run.state.step == run.total_steps;
    return last || long_ago || is_due(run.options.save_strategy, interval, run, epoch_ended);
  }
  /// Now, unless nothing is to be saved at all. No outcome is unread.
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
  double loss = 0;  ///< of all; not where outcomes are deferred
  bool saves = false;
  UnreadOutcome own;  ///< this rank's, with the norm of the gradients that it has
};

/// The rank's share of a step, and then the sum over all: the gradients, the loss, whether rank 0's clock says to save,
/// and whether any was told to stop; then all drop the step.
Agreement step_gradient(Run& run, const Step& step, const SavePlan& plan) {
  if (run.gradients) run.gradients->begin();
  std::vector<at::Tensor> shares = forward_backward(run.model, step, run.gradients.get());
  if (run.gradients) run.gradients->finish();
  if (run.sums_gradients) dist::sum_gradients(*run.group, tensors_of(run.parameters));
  const at::Tensor norm = gradient_norm(run.parameters);  // before anything is read: a device has all it needs then
  const bool saves = run.group->is_main() && plan.is_long_ago(run);
  const double loss = defers_outcomes(run) ? 0 : sum(shares);
  const at::Tensor sums = at::tensor({loss, saves ? 1.0 : 0.0, stop_signal() == 0 ? 0.0 : 1.0}, at::kDouble);
  run.group->all_reduce(sums).wait();
  if (sums[2].item<double>() > 0) stop(run);
  const double learning_rate = run.schedule.learning_rate(run.state.step);
  return {
      sums[0].item<double>(), sums[1].item<double>() > 0, {run.state.step + 1, learning_rate, std::move(shares), norm}};
}

/// Updates the weights by a step's gradients, once they are known to be good or, where outcomes are deferred, before.
/// Returns what is known.
std::optional<StepOutcome> clip_and_update(Run& run, const Agreement& agreed) {
  const double learning_rate = agreed.own.learning_rate;
  std::optional<StepOutcome> outcome;
  if (defers_outcomes(run)) {
    clip_gradients_by(run.parameters, agreed.own.grad_norm, run.options.max_grad_norm);
  } else {
    const double norm =
        clip_gradients(run.parameters, agreed.own.grad_norm, run.options.max_grad_norm, run.shards.norm_group());
    outcome = {agreed.loss, norm, learning_rate};
    check_outcome(run, agreed.own.step, *outcome);
  }
  update(run, learning_rate);
  return outcome;
}

void run_steps(Run& run, StopDeferral& deferral) {
  Report report(run);
  SavePlan saves;
  StopBound bound;
  Stopwatch since_reading;
  if (run.profiler) run.profiler->expect(run.total_steps - run.state.step);
  if (run.state.owes_evaluation) {
    evaluate_if_owed(run, report);
    saves.save(run);  // in place of the checkpoint that says it is owed
  }
  while (run.state.step < run.total_steps) {
    if (run.profiler) run.profiler->step_begins();
    const Stopwatch watch;
    Cursor next = run.state.cursor;
    const Step step = run.loader.next(next);
    Agreement agreed = step_gradient(run, step, saves);
    const std::optional<StepOutcome> outcome = clip_and_update(run, agreed);
    report.count(step, next);
    if (outcome) {
      count_outcome(run, *outcome);
    } else {
      run.unread.push_back(std::move(agreed.own));
    }
    run.state.owes_evaluation = is_evaluation_due(run, step.ends_epoch);
    const bool saves_now = SavePlan::is_save_due(run, step.ends_epoch, agreed.saves);
    // Before an evaluation or a save begins, and within the step's time: a device computes until then.
    if (report.is_due() || run.state.owes_evaluation || saves_now) read_outcomes(run);
    if (report.ends_warmup()) device::synchronize(run.model.device());
    const double seconds = watch.seconds();
    bound.step_done(step, outcome ? seconds : since_reading.seconds());  // a signal waits for what is still to do
    deferral.set_bound(bound.seconds(run));
    report.took(seconds);
    if (run.profiler) run.profiler->step_ended(step.tokens);
    report.show();
    evaluate_if_owed(run, report);
    if (saves_now) saves.save(run);
    if (run.unread.empty()) since_reading = {};
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
  const at::Tensor loss_sum = model.loss_sum(to_tensors(step.batches[i]));
  const auto targets = static_cast<double>(step.target_tokens);
  const at::Tensor share = device::compiles_graphs(model.device())
                               ? loss_sum.div(ops::to_device(at::scalar_tensor(targets, at::kFloat), model.device()))
                               : loss_sum.div(targets);
  share.backward();
  device::mark_step(model.device());
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

std::vector<at::Tensor> tensors_of(const std::vector<model::NamedTensor>& named) {
  std::vector<at::Tensor> tensors;
  for (const model::NamedTensor& each : named) tensors.push_back(each.tensor);
  return tensors;
}

double sum(const std::vector<at::Tensor>& scalars) {
  double sum = 0;
  for (const at::Tensor& scalar : scalars) sum += scalar.item<double>();
  return sum;
}

model::Batch to_tensors(const data::Batch& batch) {
  return {at::tensor(batch.tokens, at::kLong),
          at::tensor(batch.labels, at::kLong),
          at::tensor(batch.positions, at::kLong),
          batch.cu_seqlens,
          batch.row_length,
          batch.one_document_a_row};
}

}  // namespace fettle::train
