// SPDX-License-Identifier: Apache-2.0
/// Reading a JSON object key by key, with the key's name in every complaint, and knowing afterwards which keys nobody
/// has read.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace fettle::model {

/// Inclusive bounds of an integer.
struct Range {
  int64_t least;
  int64_t most;
};

/// A missing key and a null are the same. Every getter throws Error{kConfig} naming the key for a value of another type
/// or out of bounds.
class ConfigReader {
 public:
  /// `place` is how messages call the object, e.g. "config.json" or "config.json: rope_scaling".
  ConfigReader(const nlohmann::json& object, std::string place);

  /// Throws if the key is missing.
  int64_t integer(std::string_view key, Range range);
  int64_t integer_or(std::string_view key, Range range, int64_t fallback);
  bool boolean_or(std::string_view key, bool fallback);
  std::string text_or(std::string_view key, std::string_view fallback);
  /// Finite and greater than zero.
  double positive_or(std::string_view key, double fallback);
  double positive(std::string_view key);
  std::optional<double> optional_positive(std::string_view key);
  /// One integer or a list of integers, none negative.
  std::vector<int64_t> ids(std::string_view key);
  std::vector<std::string> texts(std::string_view key);
  /// The value for code that looks at it itself; null if it is missing.
  const nlohmann::json& raw(std::string_view key);
  [[nodiscard]] bool has(std::string_view key) const;
  /// Where null and a missing key differ: a missing key has the configuration class's default, null switches off.
  [[nodiscard]] bool is_null(std::string_view key) const;

  /// Counts the key as read, whatever its value.
  void ignore(std::string_view key) { read_.insert(std::string(key)); }
  /// Throws if any key has not been read, but for those with an underscore first: transformers keeps them for itself.
  void refuse_unread() const;

  [[noreturn]] void fail(std::string_view key, const std::string& problem) const;

 private:
  const nlohmann::json* find(std::string_view key);

  const nlohmann::json& object_;
  std::string place_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace fettle::model
