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

/// Steps of this process that compile rather than compute.
int64_t warmup_steps(const Run& run) {
  constexpr int64_t kCompiling = 3;
  const int64_t given = run.options.throughput_warmup_steps;
  return given >= 0 ? given : (device::compiles_graphs(run.model.device()) ? kCompiling : 0);
}

}  // namespace

Report::Report(Run& run)
    : run_(run),
      progress_(run.state.step, run.total_steps),
      logging_steps_(interval_steps(run.options.logging_steps, run.total_steps)),
      warmup_steps_(warmup_steps(run)) {}

void Report::show() {
  const StepMetrics line = metrics();
  if (is_due()) warn_of_new_graphs(line.compiled_graphs);
  const bool is_main = run_.group->is_main();
  if (run_.server != nullptr) run_.server->show(line, run_.total_steps, progress_.seconds_left(line.step));
  if (!is_due()) {
    if (is_main && run_.state.window_steps > 0) progress_.draw(line);  // else all of them are still on the device
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
  known_graphs_ = -1;  // it has one of its own
  if (!run_.group->is_main()) return;
  run_.metrics.write(evaluation_line(evaluation, run_.state.step, run_.state.epoch));
  progress_.clear();
  log::info("step {}/{}  evaluation loss {:.4f}  perplexity {:.3f}", run_.state.step, run_.total_steps, evaluation.loss,
            evaluation.perplexity());
}

void Report::count(const Step& step, const Cursor& next) {
  TrainingState& state = run_.state;
  ++state.step;
  state.cursor = next;
  state.epoch = run_.loader.epochs(state.cursor);
  state.tokens += step.tokens;
  state.target_tokens += step.target_tokens;
  tokens_ += step.tokens;
  flops_ += training_flops(run_, step);
  run_.last_evaluation.reset();
  run_.is_whole = true;
}

void Report::took(double seconds) {
  run_.state.seconds += seconds;
  seconds_ += seconds;
  if (warmup_steps_ == 0) return;
  --warmup_steps_;
  run_.state.warmup_seconds += seconds_;
  run_.state.warmup_tokens += tokens_;
  tokens_ = 0;
  seconds_ = flops_ = 0;
}

/// A step has the same graphs as the one before it, so that after the first few nothing is left to compile.
void Report::warn_of_new_graphs(int64_t compiled) {
  if (compiled < 0 || warmup_steps_ > 0) return;
  if (known_graphs_ >= 0 && compiled > known_graphs_ && run_.group->is_main()) {
    log::warning(
        "{} graphs were compiled since the last line of metrics, after the warm-up: seconds to minutes each; "
        "another run may share the cache of graphs, or shapes change (please report it)",
        compiled - known_graphs_);
  }
  known_graphs_ = compiled;
}

StepMetrics Report::metrics() const {
  const TrainingState& state = run_.state;
  StepMetrics line;
  line.step = state.step;
  line.epoch = state.epoch;
  line.loss = state.window_steps > 0 ? state.window_loss_sum / static_cast<double>(state.window_steps) : run_.last.loss;
  line.grad_norm = run_.last.grad_norm;
  line.learning_rate = run_.last.learning_rate;
  line.tokens = state.tokens;
  line.target_tokens = state.target_tokens;
  line.tokens_per_second = seconds_ > 0 ? static_cast<double>(tokens_) / seconds_ : 0;  // 0: only warm-up steps
  line.model_flops_per_second = seconds_ > 0 ? flops_ / seconds_ : 0;
  const double peak = run_.peak_flops * static_cast<double>(run_.group->size());
  if (peak > 0) line.mfu = line.model_flops_per_second / peak;
  line.memory_bytes = device::memory_bytes(run_.model.device());
  if (is_due()) line.compiled_graphs = device::compiled_graphs(run_.model.device());
  return line;
}

bool Report::is_due() const {
  const int64_t step = run_.state.step;
  return step % logging_steps_ == 0 || step == run_.total_steps || (step == 1 && run_.options.logging_first_step);
}

}  // namespace fettle::train
