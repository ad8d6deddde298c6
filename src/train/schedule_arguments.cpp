// SPDX-License-Identifier: Apache-2.0
#include "train/schedule_arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace fettle::train {

ScheduleArguments::ScheduleArguments(std::string type, nlohmann::json values)
    : type_(std::move(type)), values_(std::move(values)) {
  if (values_.is_null()) values_ = nlohmann::json::object();
  if (!values_.is_object()) {
    throw Error(ExitCode::kUsage, "lr_scheduler_kwargs is not a JSON object", "write it like {\"num_cycles\": 2}");
  }
}

const nlohmann::json* ScheduleArguments::take(const std::string& name) {
  known_.insert(name);
  const auto found = values_.find(name);
  return found == values_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<double> ScheduleArguments::number(const std::string& name) {
  const nlohmann::json* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) fail(name, "a number");
  return value->get<double>();
}

std::optional<int64_t> ScheduleArguments::integer(const std::string& name) {
  const nlohmann::json* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) fail(name, "an integer");
  return value->get<int64_t>();
}

bool ScheduleArguments::flag(const std::string& name, bool fallback) {
  const nlohmann::json* value = take(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) fail(name, "true or false");
  return value->get<bool>();
}

std::string ScheduleArguments::choice(const std::string& name, const std::string& fallback,
                                      const std::vector<std::string>& allowed) {
  const nlohmann::json* value = take(name);
  if (value == nullptr) return fallback;
  if (!value->is_string() || std::find(allowed.begin(), allowed.end(), value->get<std::string>()) == allowed.end()) {
    fail(name, fmt::format("one of {}", fmt::join(allowed, ", ")));
  }
  return value->get<std::string>();
}

void ScheduleArguments::require_all_taken() const {
  for (const auto& [name, value] : values_.items()) {
    if (known_.contains(name)) continue;
    const std::string hint =
        known_.empty() ? "this schedule takes no arguments" : fmt::format("it knows {}", fmt::join(known_, ", "));
    throw Error(ExitCode::kUsage,
                fmt::format("lr_scheduler_kwargs: the schedule {} does not know the argument '{}'", type_, name), hint);
  }
}

void ScheduleArguments::fail(const std::string& name, const std::string& expected) const {
  throw Error(ExitCode::kUsage,
              fmt::format("lr_scheduler_kwargs: '{}' of the schedule {} must be {}", name, type_, expected),
              "correct lr_scheduler_kwargs");
}

}  // namespace fettle::train
