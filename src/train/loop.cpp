// SPDX-License-Identifier: Apache-2.0
#include "train/loop.h"

#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "train/report.h"

namespace fettle::train {
namespace {

/// Refuses a step that would spoil the weights; nothing of it has been applied yet.
void require_finite(double loss, double norm, int64_t step, double learning_rate) {
  if (std::isfinite(loss) && std::isfinite(norm)) return;
  throw Error(ExitCode::kDiverged,
              fmt::format("training diverged at step {} (learning rate {:.3g}): loss {}, gradient norm {}", step + 1,
                          learning_rate, loss, norm),
              "lower learning_rate or lengthen the warm-up; checkpoints written before are intact");
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
  run.optimizer.step(learning_rate);
  run.optimizer.clear_gradients();
  run.model.refresh_compute_weights();
}

/// Whether something that happens "no", every so many "steps", or at the end of each "epoch" is due. What goes by steps
/// also happens after the last one.
bool is_due(const std::string& strategy, int64_t interval, const Run& run, bool epoch_ended) {
  if (strategy == "epoch") return epoch_ended;
  return strategy == "steps" && (run.state.step % interval == 0 || run.state.step == run.total_steps);
}

void evaluate_if_due(Run& run, Report& report, bool epoch_ended) {
  run.last_evaluation.reset();
  const double steps = run.options.eval_steps > 0 ? run.options.eval_steps : run.options.logging_steps;
  if (!run.evaluate || !is_due(run.options.eval_strategy, interval_steps(steps, run.total_steps), run, epoch_ended))
    return;
  run.last_evaluation = run.evaluate();
  run.schedule.observe(run.last_evaluation->loss);
  report.evaluated(*run.last_evaluation);
}

void save_if_due(const Run& run, bool epoch_ended) {
  const bool last = run.state.step == run.total_steps && run.options.save_strategy != "no";
  const int64_t interval = interval_steps(run.options.save_steps, run.total_steps);
  if (run.save && (last || is_due(run.options.save_strategy, interval, run, epoch_ended))) run.save(run);
}

}  // namespace

void train(Run& run) {
  Report report(run);
  while (run.state.step < run.total_steps) {
    const Stopwatch watch;
    const double learning_rate = run.schedule.learning_rate(run.state.step);
    const Step step = run.loader.next(run.state.cursor);
    const double loss = forward_backward(run.model, step);
    const double norm = clip_gradients(run.parameters, run.options.max_grad_norm);
    require_finite(loss, norm, run.state.step, learning_rate);
    update(run, learning_rate);
    report.step_done(step, {loss, norm, learning_rate, watch.seconds()});
    evaluate_if_due(run, report, step.ends_epoch);
    save_if_due(run, step.ends_epoch);
  }
}

double forward_backward(model::Decoder& model, const Step& step) {
  const TrainingMode mode(model);
  double loss = 0;
  for (const data::Batch& batch : step.batches) {
    if (batch.target_tokens == 0) continue;
    const at::Tensor share = model.loss_sum(to_tensors(batch)).div(static_cast<double>(step.target_tokens));
    share.backward();
    loss += share.item<double>();
  }
  return loss;
}

model::Batch to_tensors(const data::Batch& batch) {
  return {at::tensor(batch.tokens, at::kLong), at::tensor(batch.labels, at::kLong),
          at::tensor(batch.positions, at::kLong), batch.cu_seqlens};
}

}  // namespace fettle::train
