// SPDX-License-Identifier: Apache-2.0
/// Reading lr_scheduler_kwargs: each argument is taken once by name, what is left over is an error.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace fettle::train {

class ScheduleArguments {
 public:
  /// `values` must be an object; `type` names the schedule in messages. Throws Error{kUsage}.
  ScheduleArguments(std::string type, nlohmann::json values);

  /// A null value counts as absent, as None does in transformers. Throws Error{kUsage} for another JSON type.
  std::optional<double> number(const std::string& name);
  double number(const std::string& name, double fallback) { return number(name).value_or(fallback); }
  std::optional<int64_t> integer(const std::string& name);
  int64_t integer(const std::string& name, int64_t fallback) { return integer(name).value_or(fallback); }
  bool flag(const std::string& name, bool fallback);
  std::string choice(const std::string& name, const std::string& fallback, const std::vector<std::string>& allowed);

  /// Throws Error{kUsage} naming an argument that nobody took, and those that the schedule knows.
  void require_all_taken() const;

  [[noreturn]] void fail(const std::string& name, const std::string& expected) const;
  [[nodiscard]] const std::string& type() const { return type_; }

 private:
  const nlohmann::json* take(const std::string& name);

  std::string type_;
  nlohmann::json values_;
  std::set<std::string> known_;
};

}  // namespace fettle::train
