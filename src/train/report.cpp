// SPDX-License-Identifier: Apache-2.0
#include "train/report.h"

#include "base/log.h"
#include "device/device.h"
#include "train/loop.h"
#include "train/metrics_server.h"

namespace fettle::train {
namespace {

/// Model FLOPs of a step; a token attends to half of its document on average.
double training_flops(const Run& run, const Step& step) {
  double flops = 0;
  for (const int64_t tokens : step.document_lengths) {
    const auto length = static_cast<double>(tokens);
    flops += length * model::training_flops_per_token(run.model.spec(), (length + 1) / 2, run.full_training);
  }
  return flops;
}

}  // namespace

Report::Report(Run& run)
    : run_(run),
      progress_(run.state.step, run.total_steps),
      logging_steps_(interval_steps(run.options.logging_steps, run.total_steps)) {}

void Report::show() {
  const StepMetrics line = metrics();
  const bool is_main = run_.group->is_main();
  if (run_.server != nullptr) run_.server->show(line, run_.total_steps, progress_.seconds_left(line.step));
  if (!is_due()) {
    if (is_main) progress_.draw(line);
    return;
  }
  if (is_main) {
    run_.metrics.write(step_line(line));
    progress_.print(line);
  }
  run_.state.window_loss_sum = 0;
  run_.state.window_steps = 0;
  tokens_ = 0;
  seconds_ = flops_ = 0;
}

void Report::evaluated(const Evaluation& evaluation) {
  if (run_.server != nullptr) run_.server->evaluated(evaluation);
  if (!run_.group->is_main()) return;
  run_.metrics.write(evaluation_line(evaluation, run_.state.step, run_.state.epoch));
  progress_.clear();
  log::info("step {}/{}  evaluation loss {:.4f}  perplexity {:.3f}", run_.state.step, run_.total_steps, evaluation.loss,
            evaluation.perplexity());
}

void Report::count(const Step& step, const Cursor& next, const StepOutcome& outcome) {
  TrainingState& state = run_.state;
  ++state.step;
  state.cursor = next;
  state.epoch = run_.loader.epochs(state.cursor);
  state.tokens += step.tokens;
  state.target_tokens += step.target_tokens;
  state.loss_sum += outcome.loss;
  state.window_loss_sum += outcome.loss;
  ++state.window_steps;
  state.seconds += outcome.seconds;
  tokens_ += step.tokens;
  seconds_ += outcome.seconds;
  flops_ += training_flops(run_, step);
  last_ = outcome;
  run_.last_evaluation.reset();
  run_.is_whole = true;
}

StepMetrics Report::metrics() const {
  const TrainingState& state = run_.state;
  StepMetrics line;
  line.step = state.step;
  line.epoch = state.epoch;
  line.loss = state.window_loss_sum / static_cast<double>(state.window_steps);
  line.grad_norm = last_.grad_norm;
  line.learning_rate = last_.learning_rate;
  line.tokens = state.tokens;
  line.target_tokens = state.target_tokens;
  line.tokens_per_second = static_cast<double>(tokens_) / seconds_;
  line.model_flops_per_second = flops_ / seconds_;
  const double peak = run_.peak_flops * static_cast<double>(run_.group->size());
  if (peak > 0) line.mfu = line.model_flops_per_second / peak;
  line.memory_bytes = device::memory_bytes(run_.model.device());
  return line;
}

bool Report::is_due() const {
  const int64_t step = run_.state.step;
  return step % logging_steps_ == 0 || step == run_.total_steps || (step == 1 && run_.options.logging_first_step);
}

}  // namespace fettle::train
