// SPDX-License-Identifier: Apache-2.0
#include "train/outcome.h"

#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "device/device.h"
#include "train/loop.h"

namespace fettle::train {
namespace {

/// Ends a run by an error that all ranks throw at the same step: where saving takes all of them, this is the place.
[[noreturn]] void fail_together(Run& run, const Error& error) {
  if (run.saver != nullptr && run.saver->takes_all_ranks()) save_after_error(run);
  throw error;
}

void require_finite(Run& run, int64_t step, const StepOutcome& outcome) {
  if (std::isfinite(outcome.loss) && std::isfinite(outcome.grad_norm)) return;
  const bool is_applied = run.state.step >= step;
  if (is_applied) run.is_whole = false;  // nothing of it may be saved
  const char* saved = is_applied           ? "; a checkpoint, if there is one, is from before that step"
                      : run.state.step > 0 ? "; the state before this step is saved"
                                           : "";
  fail_together(run, Error(ExitCode::kDiverged,
                           fmt::format("training diverged at step {} (learning rate {:.3g}): loss {}, gradient norm {}",
                                       step, outcome.learning_rate, outcome.loss, outcome.grad_norm),
                           fmt::format("lower learning_rate or lengthen the warm-up{}", saved)));
}

/// Stops at a gradient norm far above those before it: the step would spoil weights that are still good.
void require_no_spike(Run& run, int64_t step, const StepOutcome& outcome) {
  constexpr size_t kWindow = 50;
  constexpr size_t kLeast = 10;  // fewer steps have no typical norm
  const double limit = run.options.grad_spike_limit;
  if (limit <= 0) return;
  std::vector<double>& norms = run.state.gradient_norms;
  if (norms.size() >= kLeast) {
    std::vector<double> sorted = norms;
    std::ranges::nth_element(sorted, sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2));
    const double median = sorted[sorted.size() / 2];
    if (outcome.grad_norm > limit * median) {
      const std::string what = fmt::format(
          "the gradient norm {:.4g} of step {} (learning rate {:.3g}) is {:.1f} times the median of the {} steps "
          "before it; grad_spike_limit is {}",
          outcome.grad_norm, step, outcome.learning_rate, outcome.grad_norm / median, norms.size(), limit);
      fail_together(run, Error(ExitCode::kDiverged, what,
                               "look at that step's records, lower learning_rate, or raise grad_spike_limit; the state "
                               "before this step is saved"));
    }
  }
  norms.push_back(outcome.grad_norm);
  if (norms.size() > kWindow) norms.erase(norms.begin());
}

}  // namespace

bool defers_outcomes(const Run& run) {
  return device::compiles_graphs(run.model.device()) && run.options.grad_spike_limit <= 0 &&
         run.shards.norm_group() == nullptr;
}

void check_outcome(Run& run, int64_t step, const StepOutcome& outcome) {
  require_finite(run, step, outcome);
  require_no_spike(run, step, outcome);
}

void count_outcome(Run& run, const StepOutcome& outcome) {
  run.state.loss_sum += outcome.loss;
  run.state.window_loss_sum += outcome.loss;
  ++run.state.window_steps;
  run.last = outcome;
}

void read_outcomes(Run& run) {
  const std::vector<UnreadOutcome> unread = std::exchange(run.unread, {});
  if (unread.empty()) return;
  std::vector<double> own;
  own.reserve(unread.size());
  for (const UnreadOutcome& each : unread) own.push_back(sum(each.shares));
  const at::Tensor losses = at::tensor(own, at::kDouble);
  run.group->all_reduce(losses).wait();
  const double* loss = losses.const_data_ptr<double>();
  for (const UnreadOutcome& each : unread) {
    const StepOutcome outcome{*loss++, each.grad_norm.item<double>(), each.learning_rate};
    check_outcome(run, each.step, outcome);
    count_outcome(run, outcome);
  }
}

void save_now(Run& run) {
  if (run.saver == nullptr || run.state.step == 0 || !run.is_whole) return;
  clear_gradients(run.parameters);
  run.saver->save(run);
  run.saver->finish();
}

void save_after_error(Run& run) {
  try {
    // Other ranks do not read theirs now.
    if (run.group->size() > 1 && !run.unread.empty()) {
      log::warning("the {} steps since the last metrics line are not saved: whether they diverged is not known",
                   run.unread.size());
      return;
    }
    read_outcomes(run);
    save_now(run);
  } catch (const c10::Error& error) {
    log::warning("the state after step {} could not be saved: {}", run.state.step, error.what_without_backtrace());
  } catch (const std::exception& error) {
    log::warning("the state after step {} could not be saved: {}", run.state.step, error.what());
  }
}

}  // namespace fettle::train
