// SPDX-License-Identifier: Apache-2.0
#include "train/adaptive_schedule.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

namespace fettle::train {
namespace {

/// A metric's infinities are not JSON numbers; null stands for "none seen yet".
nlohmann::json best_to_json(double best) {
  return std::isfinite(best) ? nlohmann::json(best) : nlohmann::json();
}

/// When a metric counts as better than the best one: common to both schedules.
struct StepProgress {
  bool minimize = true;
  bool relative = true;
  double threshold = 0;

  static StepProgress from(ScheduleArguments& arguments, const std::string& threshold_mode, double threshold) {
    StepProgress progress;
    progress.minimize = arguments.choice("mode", "min", {"min", "max"}) == "min";
    progress.relative = arguments.choice("threshold_mode", threshold_mode, {"rel", "abs"}) == "rel";
    progress.threshold = arguments.number("threshold", threshold);
    return progress;
  }

  [[nodiscard]] double worst() const {
    return minimize ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
  }

  [[nodiscard]] bool better(double metric, double best) const {
    if (minimize) return metric < (relative ? best * (1.0 - threshold) : best - threshold);
    return metric > (relative ? best * (1.0 + threshold) : best + threshold);
  }

  [[nodiscard]] double best_from_json(const nlohmann::json& value) const {
    return value.is_null() ? worst() : value.get<double>();
  }
};

double reduction_factor(ScheduleArguments& arguments, double fallback) {
  const double factor = arguments.number("factor", fallback);
  if (!(factor > 0 && factor < 1)) arguments.fail("factor", "above 0 and below 1");
  return factor;
}

class ReduceOnPlateau final : public Schedule::Adaptive {
 public:
  ReduceOnPlateau(double learning_rate, ScheduleArguments& arguments)
      : factor_(reduction_factor(arguments, 0.1)),
        patience_(arguments.integer("patience", 10)),
        cooldown_(arguments.integer("cooldown", 0)),
        minimum_(arguments.number("min_lr", 0.0)),
        epsilon_(arguments.number("eps", 1e-8)),
        progress_(StepProgress::from(arguments, "rel", 1e-4)),
        rate_(learning_rate),
        best_(progress_.worst()) {}

  [[nodiscard]] double learning_rate() const override { return rate_; }

  void observe(double metric) override {
    if (progress_.better(metric, best_)) {
      best_ = metric;
      bad_ = 0;
    } else {
      ++bad_;
    }
    if (cooling_ > 0) {
      --cooling_;
      bad_ = 0;
    }
    if (bad_ <= patience_) return;
    const double lower = std::max(rate_ * factor_, minimum_);
    if (rate_ - lower > epsilon_) rate_ = lower;
    cooling_ = cooldown_;
    bad_ = 0;
  }

  [[nodiscard]] nlohmann::json state() const override {
    return {{"learning_rate", rate_}, {"best", best_to_json(best_)}, {"bad", bad_}, {"cooling", cooling_}};
  }

  void restore(const nlohmann::json& state) override {
    rate_ = state.at("learning_rate");
    best_ = progress_.best_from_json(state.at("best"));
    bad_ = state.at("bad");
    cooling_ = state.at("cooling");
  }

 private:
  double factor_;
  int64_t patience_;
  int64_t cooldown_;
  double minimum_;
  double epsilon_;
  StepProgress progress_;
  double rate_;
  double best_;
  int64_t bad_ = 0;      ///< evaluations in a row without progress
  int64_t cooling_ = 0;  ///< evaluations to ignore after a reduction
};

class Greedy final : public Schedule::Adaptive {
 public:
  Greedy(double learning_rate, ScheduleArguments& arguments)
      : factor_(reduction_factor(arguments, 0.95)),
        patience_(arguments.integer("patience", 10)),
        cooldown_(arguments.integer("cooldown", 0)),
        warmup_(arguments.integer("warmup", 0)),
        minimum_(arguments.number("min_lr", 1e-3)),
        maximum_(arguments.number("max_lr", 1.0)),
        epsilon_(arguments.number("eps", 1e-8)),
        window_(arguments.flag("smooth", false) ? arguments.integer("window_size", 50) : 0),
        reset_after_(arguments.integer("reset_start", 500)),
        progress_(StepProgress::from(arguments, "abs", 1e-6)),
        initial_rate_(learning_rate),
        rate_(learning_rate),
        best_(progress_.worst()),
        until_reset_(reset_after_) {
    if (window_ == 0) arguments.integer("window_size");  // known, but without effect unless smooth is set
    arguments.flag("verbose", false);                    // GreedyLR prints; here each step's rate is logged anyway
  }

  [[nodiscard]] double learning_rate() const override { return rate_; }

  void observe(double metric) override {
    const double current = smoothed(metric);
    if (cooling_ > 0 || warming_ > 0) {
      --(cooling_ > 0 ? cooling_ : warming_);
      bad_ = good_ = 0;
      return;
    }
    if (progress_.better(current, best_)) {
      best_ = current;
      bad_ = 0;
      ++good_;
    } else {
      ++bad_;
      good_ = 0;
    }
    if (good_ > patience_) {
      raise();
      warming_ = warmup_;
      good_ = 0;
    } else if (bad_ > patience_) {
      lower();  // may reset everything, and the two lines below still follow, as in GreedyLR
      cooling_ = cooldown_;
      bad_ = 0;
    }
  }

  [[nodiscard]] nlohmann::json state() const override {
    return {{"learning_rate", rate_},     {"best", best_to_json(best_)}, {"bad", bad_},       {"good", good_},
            {"cooling", cooling_},        {"warming", warming_},         {"recent", recent_}, {"sum", sum_},
            {"until_reset", until_reset_}};
  }

  void restore(const nlohmann::json& state) override {
    rate_ = state.at("learning_rate");
    best_ = progress_.best_from_json(state.at("best"));
    bad_ = state.at("bad");
    good_ = state.at("good");
    cooling_ = state.at("cooling");
    warming_ = state.at("warming");
    recent_ = state.at("recent").get<std::vector<double>>();
    sum_ = state.at("sum");
    until_reset_ = state.at("until_reset");
  }

 private:
  /// The running mean of the last `window_` metrics. The sum is carried, not recomputed: its rounding is GreedyLR's.
  double smoothed(double metric) {
    if (window_ == 0) return metric;
    recent_.push_back(metric);
    sum_ += metric;
    if (static_cast<int64_t>(recent_.size()) > window_) {
      sum_ -= recent_.front();
      recent_.erase(recent_.begin());
    }
    return sum_ / static_cast<double>(recent_.size());
  }

  void raise() {
    const double higher = std::min(rate_ / factor_, maximum_);
    if (higher - rate_ > epsilon_) rate_ = higher;
    until_reset_ = reset_after_;
  }

  void lower() {
    const double lower = std::max(rate_ * factor_, minimum_);
    if (rate_ - lower > epsilon_) rate_ = lower;
    if (rate_ > minimum_ || --until_reset_ > 0) return;
    rate_ = initial_rate_;
    best_ = progress_.worst();
    bad_ = good_ = cooling_ = warming_ = 0;
    until_reset_ = reset_after_;
    recent_.clear();
    sum_ = 0;
  }

  double factor_;
  int64_t patience_;
  int64_t cooldown_;
  int64_t warmup_;
  double minimum_;
  double maximum_;
  double epsilon_;
  int64_t window_;       ///< 0: no smoothing
  int64_t reset_after_;  ///< reductions at the minimum until everything starts anew
  StepProgress progress_;
  double initial_rate_;
  double rate_;
  double best_;
  int64_t bad_ = 0;
  int64_t good_ = 0;
  int64_t cooling_ = 0;  ///< evaluations to ignore after a reduction
  int64_t warming_ = 0;  ///< evaluations to ignore after an increase
  int64_t until_reset_;
  std::vector<double> recent_;
  double sum_ = 0;
};

}  // namespace

std::shared_ptr<Schedule::Adaptive> reduce_on_plateau(double learning_rate, ScheduleArguments& arguments) {
  return std::make_shared<ReduceOnPlateau>(learning_rate, arguments);
}

std::shared_ptr<Schedule::Adaptive> greedy(double learning_rate, ScheduleArguments& arguments) {
  return std::make_shared<Greedy>(learning_rate, arguments);
}

}  // namespace fettle::train
