// SPDX-License-Identifier: Apache-2.0
#include "train/schedule.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <map>
#include <numbers>
#include <utility>
#include <vector>

#include "base/error.h"
#include "train/adaptive_schedule.h"
#include "train/schedule_arguments.h"
#include "train/steps.h"

namespace fettle::train {
namespace {

/// A schedule's rate as a share of its peak, by 0-based step.
using Factor = std::function<double(int64_t)>;

double ratio(int64_t numerator, int64_t denominator) {
  return static_cast<double>(numerator) / static_cast<double>(std::max<int64_t>(1, denominator));
}

/// One cosine wave is a whole period: 0.5 cycles fall from 1 to 0.
double cosine(double cycles, double progress) {
  return 0.5 * (1.0 + std::cos(std::numbers::pi * cycles * 2.0 * progress));
}

Factor with_linear_warmup(int64_t warmup, Factor after) {
  return [warmup, after = std::move(after)](int64_t step) { return step < warmup ? ratio(step, warmup) : after(step); };
}

Factor constant(const ScheduleOptions&, ScheduleArguments&) {
  return [](int64_t) { return 1.0; };
}

Factor constant_with_warmup(const ScheduleOptions& options, ScheduleArguments&) {
  return with_linear_warmup(options.warmup_steps, [](int64_t) { return 1.0; });
}

Factor linear(const ScheduleOptions& options, ScheduleArguments&) {
  return with_linear_warmup(options.warmup_steps,
                            [total = options.total_steps, warmup = options.warmup_steps](int64_t step) {
                              return std::max(0.0, ratio(total - step, total - warmup));
                            });
}

Factor cosine_decay(const ScheduleOptions& options, double cycles, double floor) {
  return with_linear_warmup(options.warmup_steps,
                            [=, total = options.total_steps, warmup = options.warmup_steps](int64_t step) {
                              const double factor = cosine(cycles, ratio(step - warmup, total - warmup));
                              return std::max(0.0, factor * (1 - floor) + floor);
                            });
}

Factor cosine_to_zero(const ScheduleOptions& options, ScheduleArguments& arguments) {
  return cosine_decay(options, arguments.number("num_cycles", 0.5), 0);
}

Factor cosine_with_restarts(const ScheduleOptions& options, ScheduleArguments& arguments) {
  const double cycles = arguments.number("num_cycles", 1);
  return with_linear_warmup(
      options.warmup_steps, [=, total = options.total_steps, warmup = options.warmup_steps](int64_t step) {
        const double progress = ratio(step - warmup, total - warmup);
        return progress >= 1.0 ? 0.0 : std::max(0.0, cosine(0.5, std::fmod(cycles * progress, 1.0)));
      });
}

Factor polynomial(const ScheduleOptions& options, ScheduleArguments& arguments) {
  const double end = arguments.number("lr_end", 1e-7);
  const double power = arguments.number("power", 1.0);
  const double peak = options.learning_rate;
  if (!(peak > end)) {
    throw Error(ExitCode::kConfig, fmt::format("lr_end ({}) is not below learning_rate ({})", end, peak),
                "lower lr_end in lr_scheduler_kwargs");
  }
  return with_linear_warmup(options.warmup_steps,
                            [=, total = options.total_steps, warmup = options.warmup_steps](int64_t step) {
                              const double remaining = step >= total ? 0.0 : 1 - ratio(step - warmup, total - warmup);
                              return ((peak - end) * std::pow(remaining, power) + end) / peak;
                            });
}

Factor inverse_sqrt(const ScheduleOptions& options, ScheduleArguments& arguments) {
  const int64_t warmup = options.warmup_steps;
  const int64_t timescale = arguments.integer("timescale", warmup > 0 ? warmup : 10'000);
  if (timescale <= 0) arguments.fail("timescale", "positive");
  return with_linear_warmup(warmup, [=](int64_t step) {
    return 1.0 / std::sqrt(static_cast<double>(step + timescale - warmup) / static_cast<double>(timescale));
  });
}

/// The floor of the two cosine schedules that end above zero, as a share of the peak.
double minimum_rate(const ScheduleOptions& options, ScheduleArguments& arguments) {
  const auto rate = arguments.number("min_lr");
  const auto share = arguments.number("min_lr_rate");
  if (rate.has_value() == share.has_value()) {
    throw Error(ExitCode::kConfig,
                fmt::format("{} needs either min_lr or min_lr_rate in lr_scheduler_kwargs", options.type),
                R"(for example lr_scheduler_kwargs='{"min_lr_rate": 0.1}')");
  }
  return share ? *share : *rate / options.learning_rate;
}

Factor cosine_with_min_lr(const ScheduleOptions& options, ScheduleArguments& arguments) {
  return cosine_decay(options, arguments.number("num_cycles", 0.5), minimum_rate(options, arguments));
}

/// Unlike the others its steps count from one: the first update already has a rate above zero.
Factor cosine_warmup_with_min_lr(const ScheduleOptions& options, ScheduleArguments& arguments) {
  const double cycles = arguments.number("num_cycles", 0.5);
  const double floor = minimum_rate(options, arguments);
  const std::optional<double> start = arguments.number("warmup_lr_rate");
  return [=, total = options.total_steps, warmup = options.warmup_steps](int64_t step) {
    if (step < warmup) return start ? *start + (1.0 - *start) * ratio(step, warmup - 1) : ratio(step + 1, warmup);
    return std::max(0.0, cosine(cycles, ratio(step + 1 - warmup, total - warmup)) * (1 - floor) + floor);
  };
}

Factor warmup_stable_decay(const ScheduleOptions& options, ScheduleArguments& arguments) {
  const std::vector<std::string> shapes = {"linear", "cosine", "1-sqrt"};
  const std::string warmup_type = arguments.choice("warmup_type", "linear", shapes);
  const std::string decay_type = arguments.choice("decay_type", "cosine", shapes);
  const double floor = arguments.number("min_lr_ratio", 0.0);
  const double cycles = arguments.number("num_cycles", 0.5);
  const std::optional<int64_t> decay = arguments.integer("num_decay_steps");
  if (!decay || *decay < 0) arguments.fail("num_decay_steps", "given, and a number of steps");
  const int64_t warmup = options.warmup_steps;
  const int64_t stable_end = warmup + arguments.integer("num_stable_steps", options.total_steps - warmup - *decay);
  const auto above_floor = [floor](double factor) { return std::max(0.0, factor * (1.0 - floor) + floor); };
  return [=, decay = *decay](int64_t step) {
    if (step < warmup) {
      const double progress = ratio(step, warmup);
      if (warmup_type == "linear") return above_floor(progress);
      if (warmup_type == "cosine") return above_floor(0.5 * (1.0 - std::cos(std::numbers::pi * progress)));
      return above_floor(1.0 - std::sqrt(1.0 - progress));
    }
    if (step < stable_end) return 1.0;
    if (step >= stable_end + decay) return floor;
    const double progress = ratio(step - stable_end, decay);
    if (decay_type == "linear") return above_floor(1.0 - progress);
    if (decay_type == "cosine") return above_floor(cosine(cycles, progress));
    return above_floor(1.0 - std::sqrt(progress));
  };
}

using MakeFactor = Factor (*)(const ScheduleOptions&, ScheduleArguments&);

const std::map<std::string, MakeFactor>& pure_schedules() {
  static const std::map<std::string, MakeFactor> table = {
      {"linear", linear},
      {"cosine", cosine_to_zero},
      {"cosine_with_restarts", cosine_with_restarts},
      {"polynomial", polynomial},
      {"constant", constant},
      {"constant_with_warmup", constant_with_warmup},
      {"inverse_sqrt", inverse_sqrt},
      {"cosine_with_min_lr", cosine_with_min_lr},
      {"cosine_warmup_with_min_lr", cosine_warmup_with_min_lr},
      {"warmup_stable_decay", warmup_stable_decay},
  };
  return table;
}

}  // namespace

int64_t warmup_steps(const config::TrainingConfig& options, int64_t total_steps) {
  if (options.warmup_steps >= 1) return interval_steps(options.warmup_steps, total_steps);
  const double share = options.warmup_steps > 0 ? options.warmup_steps : options.warmup_ratio;
  return static_cast<int64_t>(std::ceil(static_cast<double>(total_steps) * share));
}

Schedule::Schedule(const ScheduleOptions& options) : peak_(options.learning_rate) {
  ScheduleArguments arguments(options.type, options.arguments);
  const auto found = pure_schedules().find(options.type);
  if (found != pure_schedules().end()) {
    factor_ = found->second(options, arguments);
  } else if (options.type == "reduce_lr_on_plateau") {
    adaptive_ = reduce_on_plateau(options.learning_rate, arguments);
  } else if (options.type == "greedy") {
    adaptive_ = greedy(options.learning_rate, arguments);
  } else {
    std::vector<std::string> names = {"reduce_lr_on_plateau", "greedy"};
    for (const auto& [name, make] : pure_schedules()) names.push_back(name);
    throw Error(ExitCode::kUsage, fmt::format("lr_scheduler_type: there is no schedule '{}'", options.type),
                fmt::format("choose one of {}", fmt::join(names, ", ")));
  }
  arguments.require_all_taken();
}

Schedule Schedule::from_config(const config::TrainingConfig& options, double learning_rate, int64_t total_steps) {
  nlohmann::json arguments = nlohmann::json::object();
  if (!options.lr_scheduler_kwargs.empty()) {
    arguments = nlohmann::json::parse(options.lr_scheduler_kwargs, nullptr, false);
    if (arguments.is_discarded()) {
      throw Error(ExitCode::kUsage, fmt::format("lr_scheduler_kwargs is not JSON: {}", options.lr_scheduler_kwargs),
                  R"(write it like {"num_cycles": 2})");
    }
  }
  Schedule schedule(
      {options.lr_scheduler_type, arguments, learning_rate, warmup_steps(options, total_steps), total_steps});
  if (schedule.follows_evaluation() && options.eval_strategy == "no") {
    throw Error(ExitCode::kConfig,
                fmt::format("lr_scheduler_type {} follows the evaluation loss, but eval_strategy is no",
                            options.lr_scheduler_type),
                "set eval_strategy to steps or epoch and give validation records");
  }
  return schedule;
}

double Schedule::learning_rate(int64_t step) const {
  return adaptive_ ? adaptive_->learning_rate() : peak_ * factor_(step);
}

void Schedule::observe(double eval_loss) {
  if (adaptive_) adaptive_->observe(eval_loss);
}

nlohmann::json Schedule::state() const {
  return adaptive_ ? adaptive_->state() : nlohmann::json();
}

void Schedule::restore(const nlohmann::json& state) {
  if (adaptive_) adaptive_->restore(state);
}

}  // namespace fettle::train
